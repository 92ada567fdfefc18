use cfdrl_agent::domain::{aggregate::RuleKind, dqn::*, evaluate::*, policy::*, study::*};
use mesh_world::episode::Profile;
fn main() {
    let p = Profile::default();
    if std::env::args().nth(1).as_deref() == Some("fed") {
        let a: Vec<u64> = std::env::args().skip(2).map(|a| a.parse().unwrap()).collect();
        let study = Study {
            members: 10,
            hostile: 3,
            rounds: a[0],
            episodes: a[1],
            seed: a[2],
            settings: Settings { explore_episodes: a[0] * a[1], ..Settings::default() },
        };
        let show = |n: &str, net: &_, t: std::time::Instant| {
            let s = score_network(n, HELD_OUT_FIRST, 100, &p, net);
            println!("{n:30} {:.4} ±{:.4} {:.1?}", s.points.mean, s.points.half_width, t.elapsed());
        };
        let t = std::time::Instant::now();
        show("alone", &study.alone(0), t);
        for r in RuleKind::ALL {
            let t = std::time::Instant::now();
            show(&format!("clean {}", r.name()), &study.federate(r, Attack::None), t);
        }
        for at in Attack::ALL {
            for r in RuleKind::ALL {
                let t = std::time::Instant::now();
                show(&format!("{} {}", at.name(), r.name()), &study.federate(r, at), t);
            }
        }
        return;
    }
    let n: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    let p = Policy::train(Settings::default(), 1, n, &p, |_| {});
    println!("{} ±{}", p.card.validation_return, p.card.validation_half_width);
    std::fs::write(std::env::args().nth(2).unwrap(), p.to_file()).unwrap();
}
