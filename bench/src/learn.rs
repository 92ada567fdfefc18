//! `bench learn`: is the learner worth listening to, and do hostile members of a federation bend it?
//!
//! 1. Return on held-out seeds beside schedulers by rule, with 95 % confidence intervals; a plot.
//! 2. Ten members, three of them hostile: return of each joining rule as a share of the clean return.
//! 3. The same seed gives the same policy, byte for byte; the built-in one matches its card.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use learning::{
    aggregate::RuleKind,
    dqn::Settings,
    evaluate::{HELD_OUT_FIRST, Score, difference, score_network, score_rules},
    policy::Policy,
    study::{Attack, Study},
};
use mesh_scenes::episode::Profile;
use serde_json::json;

use continuum::{
    commands::learn::comparison,
    output::{self, Format, line, note, table},
};

/// Least share of the clean return that a robust rule keeps.
const KEPT_SHARE: f64 = 0.95;

/// Options of `bench learn`.
#[derive(Debug, Args)]
pub(crate) struct LearnOptions {
    /// Every attack by itself, longer training, and the built-in policy trained again; without it under a minute.
    #[arg(long)]
    full: bool,
    /// Where the plot is written.
    #[arg(long, default_value = "learn.svg")]
    plot: PathBuf,
    /// Held-out seeds.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(2..=10_000))]
    seeds: u64,
}

struct Measured {
    scores: Vec<Score>,
    /// Attack, rule, return, half width, share of clean.
    federation: Vec<(String, String, f64, f64, f64)>,
    same: bool,
    trained: String,
}

/// Runs it; exit code 1 if a claim does not hold.
pub(crate) async fn run(options: LearnOptions, format: Format) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let (full, seeds) = (options.full, options.seeds);
    let work = tokio::task::spawn_blocking(move || measure(full, seeds, begun));
    let measured = tokio::select! {
        measured = work => measured.context("measure")??,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    };
    std::fs::write(&options.plot, plot(&measured.scores))
        .with_context(|| format!("write the plot to {}", options.plot.display()))?;

    let learned = measured.scores.first().context("score the learner")?;
    let beaten: Vec<(String, bool)> = measured
        .scores
        .iter()
        .skip(1)
        .map(|s| {
            let ahead = difference(learned, s);
            (format!("ahead of {} beyond chance", s.name), ahead.mean - ahead.half_width > 0.0)
        })
        .collect();
    let robust = measured
        .federation
        .iter()
        .filter(|f| f.0 != "none" && f.1 != "mean")
        .map(|f| (format!("{} keeps {KEPT_SHARE} of the clean return under {}", f.1, f.0), f.4 >= KEPT_SHARE));
    let plain = measured
        .federation
        .iter()
        .filter(|f| f.0 != "none" && f.1 == "mean")
        .map(|f| (format!("the plain mean does not under {}", f.0), f.4 < KEPT_SHARE));
    let mut claims = beaten;
    claims.extend(robust.chain(plain));
    claims.push((measured.trained.clone(), measured.same));

    let comparison = comparison(&measured.scores);
    let value = json!({
        "full": full, "seeds": seeds, "seconds": begun.elapsed().as_secs_f64(), "plot": options.plot,
        "schedulers": comparison.value,
        "federation": measured.federation.iter().map(|f| json!({
            "attack": f.0, "rule": f.1, "return": f.2, "halfWidth": f.3, "shareOfClean": f.4,
        })).collect::<Vec<_>>(),
        "claims": claims.iter().map(|(claim, holds)| json!({"claim": claim, "holds": holds})).collect::<Vec<_>>(),
    });
    match format {
        Format::Table => {
            line(comparison.text);
            let rows = measured
                .federation
                .iter()
                .map(|f| vec![f.0.clone(), f.1.clone(), format!("{:.3} ± {:.3}", f.2, f.3), format!("{:.3}", f.4)]);
            line(table(&["attack of 3 of 10", "rule", "return (95 %)", "of clean"], rows.collect()));
            let rows =
                claims.iter().map(|(claim, holds)| vec![claim.clone(), if *holds { "yes" } else { "NO" }.into()]);
            line(table(&["claim", "holds"], rows.collect()));
        }
        Format::Json => line(serde_json::to_string_pretty(&value)?),
        Format::Yaml => line(output::yaml(&value).trim_end()),
    }
    note(format!("{:.1} s; plot in {}", begun.elapsed().as_secs_f64(), options.plot.display()));
    Ok(ExitCode::from(u8::from(!claims.iter().all(|(_, holds)| *holds))))
}

fn measure(full: bool, seeds: u64, begun: Instant) -> anyhow::Result<Measured> {
    let progress = |what: &str| note(format!("[{:5.1} s] {what}", begun.elapsed().as_secs_f64()));
    let profile = Profile::default();
    let built_in = Policy::from_file(learning::BUILT_IN.as_bytes())?;

    progress("schedulers by rule, on held-out seeds");
    let mut scores = vec![score_network("learned", HELD_OUT_FIRST, seeds, &profile, &built_in.network)];
    scores.extend(score_rules(HELD_OUT_FIRST, seeds, &profile));

    progress("the same seed again");
    let (same, trained) = if full {
        let card = &built_in.card;
        let again = Policy::train(Settings::default(), card.seed, card.episodes, &profile, |_| {});
        (again.network == built_in.network, "training the built-in policy again gives it byte for byte".to_owned())
    } else {
        let train = || Policy::train(Settings::default(), 7, 6, &profile, |_| {});
        (train().to_file() == train().to_file(), "the same seed gives the same policy byte for byte".to_owned())
    };

    let (rounds, episodes) = if full { (16, 3) } else { (8, 1) };
    // Few episodes each: larger steps, and exploration that ends with them.
    let settings = Settings {
        learning_rate: 1e-3,
        batch: 32,
        explore_episodes: rounds * episodes,
        replay_max: 4_000,
        ..Settings::default()
    };
    let study = Study { members: 10, hostile: 3, rounds, episodes, seed: 11, settings };
    let attacks: &[Attack] = if full { &Attack::ALL } else { &[Attack::Mixed] };
    let mut federation = vec![];
    let score = |network| score_network("", HELD_OUT_FIRST, seeds, &profile, &network).points;
    progress("one member alone, and a federation without hostile members");
    let clean = score(study.federate(RuleKind::Mean, Attack::None));
    let alone = score(study.alone(0));
    let mut row = |attack: &str, rule: &str, points: learning::evaluate::Mean| {
        federation.push((attack.to_owned(), rule.to_owned(), points.mean, points.half_width, points.mean / clean.mean));
    };
    row("none", "one member alone", alone);
    row("none", "mean", clean);
    for attack in attacks {
        progress(&format!("hostile members: {}", attack.name()));
        for rule in RuleKind::ALL {
            row(attack.name(), rule.name(), score(study.federate(rule, *attack)));
        }
    }
    Ok(Measured { scores, federation, same, trained })
}

/// A bar for each scheduler with its confidence interval, as SVG.
fn plot(scores: &[Score]) -> String {
    const WIDTH: f64 = 720.0;
    const LEFT: f64 = 150.0;
    const ROW: f64 = 30.0;
    let most = scores.iter().map(|s| s.points.mean + s.points.half_width).fold(0.1, f64::max);
    let x = |value: f64| LEFT + value.max(0.0) / most * (WIDTH - LEFT - 90.0);
    let height = ROW * (scores.len() as f64 + 2.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"20\">Mean return on {} \
         held-out seeds, points per workload and period, 95 % intervals</text>\n",
        scores.first().map_or(0, |s| s.returns.len())
    );
    for (row, score) in scores.iter().enumerate() {
        let y = ROW * (row as f64 + 1.3);
        let fill = if row == 0 { "#1b7f5c" } else { "#9aa7b1" };
        let (low, high, middle) = (
            x(score.points.mean - score.points.half_width),
            x(score.points.mean + score.points.half_width),
            y + ROW / 2.0 - 4.0,
        );
        svg.push_str(&format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n<rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" \
             fill=\"{fill}\"/>\n<path d=\"M{low:.1} {middle}H{high:.1}M{low:.1} {}V{}M{high:.1} {}V{}\" stroke=\"black\"/>\n\
             <text x=\"{:.1}\" y=\"{}\">{:.3}</text>\n",
            LEFT - 8.0,
            middle + 4.0,
            score.name,
            x(score.points.mean) - LEFT,
            ROW - 8.0,
            middle - 4.0,
            middle + 4.0,
            middle - 4.0,
            middle + 4.0,
            high + 8.0,
            middle + 4.0,
            score.points.mean
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plot_has_a_bar_for_each_scheduler() {
        let scores = score_rules(1, 2, &Profile::default());
        let svg = plot(&scores);
        assert_eq!(svg.matches("<rect x=").count(), scores.len());
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && !svg.contains("NaN"));
    }
}
