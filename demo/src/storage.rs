//! Chapter: an object is read back after a location is destroyed, and made whole again.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use continuum::{
    commands::storage,
    output::{line, table},
};
use mesh_client::{Client, OWNER};
use mesh_proto::storage::{DefinePolicy, Goals, Location, Policy, RegisterLocation};

use crate::story::Story;

/// Bytes of the object.
const SIZE: usize = 6_000_000;

/// Shows it; the folders of its locations are the storage service's own.
pub(super) async fn chapter(story: &mut Story, client: &Client, data_dir: &Path) -> anyhow::Result<()> {
    story.chapter("an object survives the loss of a location");
    story.step("four storage locations are registered, and a policy is chosen from goals");
    let register = async |name: &str, kind: &str, lat: f64, lng: f64, price: f64| {
        let description = Some(Location {
            kind: kind.into(),
            url: format!("dir:{name}"),
            location: name.into(),
            lat,
            lng,
            is_gdpr: true,
            storage_price: Some(price),
            unavailability: if kind == "edge" { 0.02 } else { 0.001 },
            ..Location::default()
        });
        storage::send(client, &RegisterLocation { owner: OWNER.into(), location: name.into(), description }).await
    };
    let places = [
        ("demo-plant", "edge", 45.75, 21.23, 4.0),
        ("demo-depot", "edge", 45.80, 21.30, 4.0),
        ("demo-vienna", "cloud", 48.21, 16.37, 20.0),
        ("demo-frankfurt", "cloud", 50.11, 8.68, 22.0),
    ];
    for (name, kind, lat, lng, price) in places {
        register(name, kind, lat, lng, price).await?;
    }
    let goals = Goals {
        latency: 0.5,
        availability: 0.6,
        cost: 0.5,
        lat: 45.75,
        lng: 21.23,
        gdpr_only: true,
        locations_min: 4,
        ..Goals::default()
    };
    let definition = Some(Policy { goals: Some(goals), ..Policy::default() });
    storage::send(client, &DefinePolicy { owner: OWNER.into(), policy: "demo".into(), definition }).await?;
    let health = storage::health(client, OWNER).await?;
    let policy = health.policies.iter().find(|p| p.definition.as_ref().is_some_and(|d| d.name == "demo"));
    let policy = policy.context("the policy is there")?;
    story.detail(&policy.reason);
    let rows = policy.candidates.iter().map(|c| {
        let terms = c.terms.iter().map(|t| format!("{} {:.1}", t.name, t.value)).collect::<Vec<_>>().join(", ");
        let verdict = if c.chosen { "chosen".to_owned() } else { c.ruled_out.clone() };
        vec![c.location.clone(), format!("{:.2}", c.score), terms, verdict]
    });
    line(table(&["location", "score", "terms", "verdict"], rows.collect()));
    let redundant = policy.definition.as_ref().and_then(|d| d.redundancy.as_ref()).map_or(0, |r| r.redundant_packets);
    story.expect("the policy survives the loss of a location", redundant >= 1);

    story.step("an object is stored: sealed, coded, a fragment in each location");
    let name = format!("demo-{}", uuid::Uuid::now_v7().simple());
    let bucket = storage::bucket(client, data_dir, OWNER, &name).await?;
    bucket.make_bucket("demo").await?;
    let object: Vec<u8> = (0..SIZE as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let begun = std::time::Instant::now();
    bucket.put("report.bin", object.clone().into()).await?;
    story.detail(format!("{SIZE} bytes are on disk in {:.0} ms", begun.elapsed().as_secs_f64() * 1e3));

    story.step("the location demo-plant is destroyed");
    let folder = data_dir.join("state/secure-storage/locations/demo-plant");
    std::fs::remove_dir_all(&folder).with_context(|| format!("destroy {}", folder.display()))?;
    // A put leaves nothing in the cache, so what is read comes from the remaining locations.
    let begun = std::time::Instant::now();
    let back = bucket.get("report.bin", None).await?;
    story.detail(format!("{} bytes are read back in {:.0} ms", back.len(), begun.elapsed().as_secs_f64() * 1e3));
    story.expect("every byte is as it was", back == object);
    let health = storage::health(client, OWNER).await?;
    let lost: Vec<_> = health.locations.iter().filter(|location| !location.reachable).collect();
    lost.iter().for_each(|l| story.detail(&l.reason));
    story.expect("the storage service names the location that is lost", lost.len() == 1);

    story.step("the location is replaced by an empty one, and filled again");
    let (name, kind, lat, lng, price) = places[0];
    register(name, kind, lat, lng, price).await?;
    let scrub = storage::scrub(client, OWNER, true, false, Duration::from_secs(30)).await?;
    story.detail(format!(
        "{} fragments of {} objects were checked: {} were missing, {} were rebuilt from the others",
        scrub.fragments, scrub.objects, scrub.missing, scrub.repaired
    ));
    story.expect("what was lost has been rebuilt", scrub.missing > 0 && scrub.repaired == scrub.missing);
    let scrub = storage::scrub(client, OWNER, false, false, Duration::from_secs(30)).await?;
    story.expect("nothing is missing any more", scrub.missing + scrub.rotten + scrub.lost == 0);
    story.close(
        "one of four locations was destroyed; the object was read back whole, and its redundancy was restored",
        "a lost site costs neither data nor availability, and the policy that guarantees it was chosen from your goals.",
    );
    Ok(())
}
