//! The recipe of a policy, its locations and its code; and the checks of policies and locations.

use mesh_proto::{
    Refusal,
    storage::{Encryption, Location, Policy, Redundancy},
};

use crate::blob::code::{Code, SHARDS_MAX, Scheme};

/// Bytes of text that a policy or a location may hold in one field.
const TEXT_MAX: usize = 1_024;

/// A policy as the gateway follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The code.
    pub scheme: Scheme,
    /// Fragments that suffice, k.
    pub data: usize,
    /// Redundant fragments, r.
    pub redundant: usize,
    /// Location of each fragment.
    pub locations: Vec<String>,
    /// DEFLATE level; 0 for none.
    pub deflate_level: u32,
    /// Sealed with AES-256-GCM?
    pub encrypted: bool,
    /// Fragments on disk before a write is acknowledged.
    pub acknowledge_at: usize,
}

fn refusal(reason: impl Into<String>, hint: impl Into<String>) -> Refusal {
    Refusal::invalid(reason, hint)
}

/// The recipe of a policy whose locations are chosen.
///
/// # Errors
/// When the policy is impossible.
pub fn recipe(policy: &Policy) -> Result<Recipe, Refusal> {
    for (field, text) in [("name", &policy.name), ("description", &policy.description)] {
        if text.len() > TEXT_MAX {
            return Err(refusal(format!("{field} has {} bytes", text.len()), format!("use at most {TEXT_MAX}")));
        }
    }
    let locations: Vec<String> = policy.edge_devices.iter().chain(&policy.backends).cloned().collect();
    let shards = locations.len();
    if shards == 0 {
        return Err(refusal("the policy names no location", "name edge_devices or backends, or give goals"));
    }
    if shards > SHARDS_MAX {
        return Err(refusal(format!("the policy names {shards} locations"), format!("name at most {SHARDS_MAX}")));
    }
    if let Some(twice) = locations.iter().enumerate().find_map(|(i, l)| locations[..i].contains(l).then_some(l)) {
        return Err(refusal(
            format!("the policy names location {twice} twice; its loss would cost two fragments"),
            "name each location once",
        ));
    }
    let none = Redundancy::default();
    let redundancy = policy.redundancy.as_ref().unwrap_or(&none);
    let Some(scheme) = Scheme::named(&redundancy.scheme) else {
        return Err(refusal(
            format!("unknown redundancy scheme {:?}", redundancy.scheme),
            "use RS, RLNC or REPLICATION",
        ));
    };
    let mut redundant = redundancy.redundant_packets as usize;
    if scheme == Scheme::Replication {
        if redundant != 0 && redundant != shards - 1 {
            return Err(refusal(
                format!("REPLICATION keeps a copy in each of {shards} locations, which is {} redundant", shards - 1),
                format!("leave redundant_packets out, or set it to {}", shards - 1),
            ));
        }
        redundant = shards - 1;
    }
    if redundant >= shards {
        return Err(refusal(
            format!("{redundant} redundant fragments of {shards} leave none that hold data"),
            format!("use at most {}, or more locations", shards - 1),
        ));
    }
    let data = shards - redundant;
    Code::new(scheme, data, redundant).map_err(|e| refusal(e.to_string(), "use another shape"))?;
    let deflate_level = match &policy.compression {
        None => 0,
        Some(c) if c.scheme == "DEFLATE" && (1..=9).contains(&c.level) => c.level,
        Some(c) => {
            return Err(refusal(
                format!("unknown compression {:?} with level {}", c.scheme, c.level),
                "use DEFLATE with a level from 1 to 9, or leave compression out",
            ));
        }
    };
    let encrypted = encrypted(policy.encryption.as_ref())?;
    let acknowledge_at = match policy.acknowledge_at as usize {
        0 => data + redundant.div_ceil(2),
        at if (data..=shards).contains(&at) => at,
        at => {
            return Err(refusal(
                format!("acknowledge_at is {at}; an object has {shards} fragments and needs {data} of them"),
                format!("use {data} to {shards}"),
            ));
        }
    };
    Ok(Recipe { scheme, data, redundant, locations, deflate_level, encrypted, acknowledge_at })
}

/// Encrypted unless the policy says `NONE`.
fn encrypted(encryption: Option<&Encryption>) -> Result<bool, Refusal> {
    match encryption {
        None => Ok(true),
        Some(e) if e.scheme == "NONE" => Ok(false),
        Some(e) if e.scheme == "AES" && matches!(e.key_size, 0 | 256) && matches!(&*e.block_mode, "" | "GCM") => {
            Ok(true)
        }
        Some(e) => Err(refusal(
            format!("unknown cipher {:?} with {} bits in mode {:?}", e.scheme, e.key_size, e.block_mode),
            "use AES with 256 bits in mode GCM, leave encryption out for the same, or NONE",
        )),
    }
}

/// Checks a location.
///
/// # Errors
/// When the location is impossible.
pub fn check_location(location: &Location) -> Result<(), Refusal> {
    let texts = [
        &location.url,
        &location.credentials,
        &location.region,
        &location.description,
        &location.location,
        &location.country,
        &location.countrycode,
        &location.cloud_provider_name,
        &location.cloud_provider_jurisdiction,
        &location.cloud_provider_url,
        &location.cluster_id,
        &location.node,
    ];
    if texts.iter().any(|text| text.len() > TEXT_MAX) {
        return Err(refusal("a text of the location is too long", format!("use at most {TEXT_MAX} bytes")));
    }
    if !matches!(&*location.kind, "edge" | "cloud") {
        return Err(refusal(format!("unknown kind of location {:?}", location.kind), "use edge or cloud"));
    }
    let folder = location.url.strip_prefix("dir:");
    let server = location.url.strip_prefix("http://").or_else(|| location.url.strip_prefix("https://"));
    match (folder, server) {
        (Some(folder), _) if mesh_proto::is_key(folder) => {}
        (Some(folder), _) => {
            return Err(refusal(
                format!("invalid folder name {folder:?}"),
                "use dir:<name> of letters, digits, `_` and `-`",
            ));
        }
        (_, Some(server)) => {
            let bucket = server.split('/').nth(1).unwrap_or_default();
            if bucket.is_empty() || server.contains(['?', '#', '@', ' ']) || server.starts_with('/') {
                return Err(refusal(
                    format!("{:?} does not name a bucket of a server", location.url),
                    "use http(s)://host[:port]/bucket[/prefix], without credentials",
                ));
            }
            if location.credentials.is_empty() {
                return Err(refusal(
                    "the S3 location names no credentials",
                    "put the keys into the gateway's location_keys_file and give their name here",
                ));
            }
        }
        (None, None) => {
            return Err(refusal(
                format!("invalid location URL {:?}", location.url),
                "use dir:<name> or http(s)://…/bucket",
            ));
        }
    }
    let numbers = [location.lat, location.lng, location.unavailability]
        .into_iter()
        .chain([location.storage_price, location.download_price, location.upload_price].into_iter().flatten());
    let prices = [location.storage_price, location.download_price, location.upload_price];
    if numbers.into_iter().any(|number| !number.is_finite())
        || location.lat.abs() > 90.0
        || location.lng.abs() > 180.0
        || !(0.0..=1.0).contains(&location.unavailability)
        || prices.into_iter().flatten().any(|price| price < 0.0)
    {
        return Err(refusal(
            "a coordinate, price or probability is out of bounds",
            "use lat from -90 to 90, lng from -180 to 180, prices from 0, unavailability from 0 to 1",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mesh_proto::storage::Compression;

    use super::*;

    fn hybrid() -> Policy {
        Policy {
            name: "Hybrid-storage-policy".into(),
            edge_devices: ["1", "2", "3"].map(Into::into).into(),
            backends: vec!["144".into()],
            redundancy: Some(Redundancy { scheme: "RLNC".into(), redundant_packets: 1 }),
            compression: Some(Compression { scheme: "DEFLATE".into(), level: 7 }),
            encryption: Some(Encryption { scheme: "AES".into(), key_size: 256, block_mode: "GCM".into() }),
            ..Policy::default()
        }
    }

    #[test]
    fn the_example_of_the_specification_is_three_and_one() {
        let recipe = recipe(&hybrid()).unwrap();
        assert_eq!((recipe.data, recipe.redundant, recipe.locations.len()), (3, 1, 4));
        assert_eq!((recipe.scheme, recipe.deflate_level, recipe.encrypted), (Scheme::Rlnc, 7, true));
        assert_eq!(recipe.acknowledge_at, 4);
    }

    #[test]
    fn only_an_explicit_none_leaves_objects_unencrypted() {
        let with = |encryption| super::recipe(&Policy { encryption, ..hybrid() });
        assert!(with(None).unwrap().encrypted);
        assert!(with(Some(Encryption { scheme: "AES".into(), ..Encryption::default() })).unwrap().encrypted);
        assert!(!with(Some(Encryption { scheme: "NONE".into(), ..Encryption::default() })).unwrap().encrypted);
        assert!(with(Some(Encryption::default())).is_err());
        assert!(with(Some(Encryption { scheme: "AES".into(), key_size: 128, block_mode: "GCM".into() })).is_err());
    }

    #[test]
    fn impossible_policies_are_refused_with_a_hint() {
        let cases: [fn(&mut Policy); 7] = [
            |p| p.redundancy = Some(Redundancy { scheme: "RS".into(), redundant_packets: 4 }),
            |p| p.redundancy = Some(Redundancy { scheme: "LRC".into(), redundant_packets: 1 }),
            |p| p.redundancy = Some(Redundancy { scheme: "REPLICATION".into(), redundant_packets: 1 }),
            |p| p.backends = vec!["1".into()],
            |p| p.acknowledge_at = 2,
            |p| p.compression = Some(Compression { scheme: "DEFLATE".into(), level: 10 }),
            |p| p.edge_devices = (0..40).map(|i| i.to_string()).collect(),
        ];
        for spoil in cases {
            let mut policy = hybrid();
            spoil(&mut policy);
            let refusal = recipe(&policy).unwrap_err();
            assert!(!refusal.reason.is_empty() && !refusal.hint.is_empty(), "{refusal:?}");
        }
    }

    #[test]
    fn a_location_cannot_leave_its_folder_or_carry_credentials() {
        let at = |url: &str| Location {
            kind: "edge".into(),
            url: url.into(),
            credentials: "c".into(),
            ..Location::default()
        };
        for good in ["dir:edge-1", "http://127.0.0.1:9000/bucket", "https://s3.example/bucket/prefix"] {
            assert!(check_location(&at(good)).is_ok(), "{good}");
        }
        for bad in ["dir:../x", "dir:/etc", "dir:", "/etc", "file:///x", "http://u:p@h/b", "http://h", "http:///b", ""]
        {
            assert!(check_location(&at(bad)).is_err(), "{bad}");
        }
        assert!(check_location(&Location { credentials: String::new(), ..at("http://h/b") }).is_err());
        assert!(check_location(&Location { lat: f64::NAN, ..at("dir:a") }).is_err());
    }
}
