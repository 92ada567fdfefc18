//! Network intents: classified, translated, and so made a list of calls.
//!
//! A document's keywords, its label and then the verb and object type of each expectation, are looked up in the trees of
//! the installed libraries. A library either rewrites expectations into less abstract ones, which are classified again,
//! or gives the calls that carry them out. Keywords are compared exactly: `L2_VPN` is not `L2VPN`.

mod catalogue;
mod document;
mod l2sm;
mod l2vpn;
mod linux;
mod nemo;
mod template;
mod tfs;

pub use catalogue::{Call, Catalogue, Library, Outcome, Plan, Tree};
pub use document::{Expectation, NetworkIntent, TEXT_BYTES_MAX, parse};
pub use linux::Segment;
pub use mesh_intent::secret::redact_json as redact;
pub use template::Template;

/// The libraries that come with the exposer.
pub fn standard() -> Catalogue {
    let mut catalogue = Catalogue::default();
    catalogue.install(Box::new(nemo::Nemo));
    catalogue.install(Box::new(l2vpn::L2Vpn));
    catalogue.install(Box::new(tfs::TfsController));
    catalogue.install(Box::new(l2sm::L2sm));
    catalogue.install(Box::new(linux::Linux));
    catalogue
}

#[cfg(test)]
mod tests;
