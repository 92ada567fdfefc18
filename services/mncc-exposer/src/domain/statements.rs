//! What is not proven of the adaptors that make calls.

/// What is not proven of who makes calls, by name; `None` of what is tested against the real thing.
pub fn statement(name: &str) -> Option<&'static str> {
    match name {
        "l2sm" => Some(
            "l2sm speaks a protocol of this project (proto/continuum/l2sm/v1): no other maker's link-layer manager is known \
             to speak it",
        ),
        "tfs_controller" => Some(
            "tfs_controller was tried only against a recorder of its calls, never against an ETSI TeraFlowSDN controller",
        ),
        _ => None,
    }
}

/// What is not proven of those who make these calls, each once.
pub fn statements<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let found: std::collections::BTreeSet<&str> = names.filter_map(statement).collect();
    found.into_iter().map(str::to_owned).collect()
}
