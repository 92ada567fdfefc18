//! What touches the world: tasks, drivers, files and HTTP.

pub mod agent;
pub mod driver;
pub mod measure;
pub mod otlp;
pub mod probe;
pub mod publisher;
pub mod state;
mod table;
