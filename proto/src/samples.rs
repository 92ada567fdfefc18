//! Keys of samples on Zenoh: `continuum/<site>/<node>/<signal>/<id>`. They are written here and nowhere else.

/// The key of one sample or liveness token.
pub fn sample_key(site: &str, node: &str, signal: &str, id: &str) -> String {
    format!("continuum/{site}/{node}/{signal}/{id}")
}

/// The keys of one signal, of every site and node.
pub fn sample_keys(signal: &str) -> String {
    sample_key("*", "*", signal, "*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_site_node_signal_and_id() {
        assert_eq!(sample_key("s", "n", "alive", "c"), "continuum/s/n/alive/c");
        assert_eq!(sample_keys("alive"), "continuum/*/*/alive/*");
    }

    #[test]
    fn every_key_of_the_contract_is_one_of_a_signal() {
        let contract = crate::contract();
        let keys: Vec<&String> =
            contract.services.iter().flat_map(|s| s.samples_in.iter().chain(&s.samples_out)).collect();
        assert!(!keys.is_empty());
        for key in keys {
            assert_eq!(key.split('/').count(), 5, "{key}");
            assert!(key.starts_with("continuum/"), "{key}");
        }
    }
}
