//! Compiles the contract and generates, beside the message types, what the options say: subjects, keys,
//! and one typed enum of inputs and of facts per decider.

#![expect(clippy::disallowed_methods, reason = "cargo tells a build script by the environment where to write")]

#[path = "src/contract.rs"]
#[allow(dead_code, missing_docs, unreachable_pub)]
mod contract;
#[path = "src/summary.rs"]
#[allow(dead_code, missing_docs, unreachable_pub)]
mod summary;

use std::{collections::BTreeMap, env, fmt::Write as _, fs, path::PathBuf};

use contract::{Contract, EventSpec};
use prost_reflect::{DescriptorPool, prost::Message as _};

/// Number of `package` in a file's descriptor.
const PACKAGE: i32 = 2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut files = vec![];
    collect(&PathBuf::from("continuum"), &mut files)?;
    files.sort();
    println!("cargo:rerun-if-changed=continuum");
    println!("cargo:rerun-if-changed=src/contract.rs");
    println!("cargo:rerun-if-changed=src/summary.rs");

    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;
    let encoded = compiler.encode_file_descriptor_set();
    fs::write(out.join("descriptors.bin"), &encoded)?;
    let pool = DescriptorPool::decode(encoded.as_slice())?;
    let contract = Contract::read(&pool)?;

    let set = compiler.file_descriptor_set();
    let set = prost_types::FileDescriptorSet::decode(set.encode_to_vec().as_slice())?;
    let set = prost_types::FileDescriptorSet {
        file: set
            .file
            .into_iter()
            .filter(|f| {
                f.name().ends_with("timestamp.proto")
                    || f.name().ends_with("mesh/v1/refusal.proto")
                    || (f.package().starts_with("continuum") && f.package() != "continuum.mesh.v1")
            })
            .collect(),
    };
    let mut config = tonic_prost_build::Config::new();
    config.bytes(["."]).btree_map(["."]).extern_path(".google.protobuf.Timestamp", "crate::Timestamp");
    for found in pool.all_messages().filter(|m| m.full_name().starts_with("continuum.")) {
        config
            .message_attribute(found.full_name(), "#[derive(serde::Serialize, serde::Deserialize)]\n#[serde(default)]");
    }
    for field in pool.all_messages().flat_map(|m| m.fields().collect::<Vec<_>>()) {
        if matches!(field.kind(), prost_reflect::Kind::Bytes) {
            config.field_attribute(field.full_name(), "#[serde(with = \"crate::wire::as_base64\")]");
        }
    }
    for found in pool.all_enums().filter(|m| m.full_name().starts_with("continuum.")) {
        config.enum_attribute(found.full_name(), "#[derive(serde::Serialize, serde::Deserialize)]");
    }
    tonic_prost_build::configure().build_transport(true).compile_fds_with_config(set, config)?;

    fs::write(out.join("events.rs"), events(&contract))?;
    fs::write(out.join("deciders.rs"), deciders(&contract))?;
    fs::write(out.join("areas.rs"), areas(&pool)?)?;
    fs::write(out.join("streams.rs"), streams(&contract))?;
    Ok(())
}

/// One module per package, documented by the comment before the `package` of the file that is named like it.
fn areas(pool: &DescriptorPool) -> Result<String, String> {
    let mut packages = BTreeMap::<String, String>::new();
    for file in pool.files() {
        let name = file.package_name().to_owned();
        let Some(area) = name.strip_prefix("continuum.").and_then(|rest| rest.strip_suffix(".v1")) else { continue };
        let doc = contract::comment(file.file_descriptor_proto(), &[PACKAGE]);
        if doc.is_empty() {
            return Err(format!("{}: say in a comment before `package` what it is about", file.name()));
        }
        let own = file.name().ends_with(&format!("/{area}.proto"));
        if own || !packages.contains_key(area) {
            packages.insert(area.to_owned(), doc);
        }
    }
    let mut text = "/// Packages nested as the generated code expects them.\n#[allow(missing_docs, clippy::all, unreachable_pub)]\nmod continuum {\n".to_owned();
    for area in packages.keys() {
        let _ = writeln!(
            text,
            "    pub mod {area} {{ pub mod v1 {{ include!(concat!(env!(\"OUT_DIR\"), \"/continuum.{area}.v1.rs\")); }} }}"
        );
    }
    text.push_str("}\n");
    // What describes the bus itself is not an area: this crate re-exports what is needed of it.
    for (area, doc) in packages.iter().filter(|(area, _)| *area != "mesh") {
        let _ = writeln!(text, "#[doc = {doc:?}]\npub use continuum::{area}::v1 as {area};");
    }
    Ok(text)
}

fn collect(folder: &PathBuf, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
    Ok(())
}

/// `continuum.intent.v1.SubmitIntent` -> `crate::intent::SubmitIntent`.
fn rust_path(message: &str) -> String {
    let parts: Vec<&str> = message.split('.').collect();
    format!("crate::{}::{}", parts[1], parts[3])
}

/// A variant name that is unique across areas: `IntentAccepted` exists in two.
fn variant(message: &str) -> String {
    message.rsplit('.').next().unwrap_or_default().to_owned()
}

fn events(contract: &Contract) -> String {
    let mut text = String::new();
    for event in &contract.events {
        let path = rust_path(&event.message);
        let keys = event.keys.iter().map(|k| format!("&self.{k}")).collect::<Vec<_>>().join(", ");
        let set = event.keys.iter().enumerate().map(|(i, k)| format!("{i} => &mut self.{k},")).collect::<String>();
        let refusal = if event.refusal {
            "    fn refusal(&self) -> Option<(&str, crate::Refusal)> { Some((&self.command_id, crate::Refusal::new(self.code(), self.reason.as_str(), self.hint.as_str()))) }\n"
        } else {
            ""
        };
        let _ = write!(
            text,
            "impl crate::Event for {path} {{
    const MESSAGE: &'static str = {:?};
    const STREAM: &'static str = {:?};
    const SUBJECT: &'static str = {:?};
    const AREA: &'static str = {:?};
    const COMMAND: bool = {};
    fn keys(&self) -> Vec<&str> {{ vec![{keys}] }}
    fn key_mut(&mut self, position: usize) -> Option<&mut String> {{ Some(match position {{ {set} _ => return None }}) }}
{refusal}}}
",
            event.message, event.stream, event.subject, event.area, event.command
        );
    }
    let refusals: String = contract
        .events
        .iter()
        .filter(|event| event.refusal)
        .map(|event| {
            let path = rust_path(&event.message);
            format!("        {:?} => {path}::decode(body).ok().and_then(|fact| Refusal::of(&fact)),\n", event.message)
        })
        .collect();
    let _ = write!(
        text,
        "fn decode_refusal(message: &str, body: &[u8]) -> Option<Refusal> {{
    use prost::Message as _;
    match message {{
{refusals}        _ => None,
    }}
}}
"
    );
    text
}

fn streams(contract: &Contract) -> String {
    let mut text = String::new();
    for stream in &contract.streams {
        let _ = writeln!(
            text,
            "#[doc = {:?}]\npub const {}: crate::Stream = crate::Stream {{ name: {:?}, all: {:?} }};",
            stream.doc, stream.name, stream.name, stream.subject
        );
    }
    text
}

fn event_enum(name: &str, doc: &str, events: &[&EventSpec]) -> String {
    let mut text = format!("/// {doc}\n#[derive(Clone, Debug, PartialEq)]\npub enum {name} {{\n");
    let variants: Vec<String> = events
        .iter()
        .map(|e| {
            let plain = variant(&e.message);
            let clash = events.iter().filter(|o| variant(&o.message) == plain).count() > 1;
            if clash { format!("{}{plain}", capital(&e.area)) } else { plain }
        })
        .collect();
    for (event, variant) in events.iter().zip(&variants) {
        let _ = writeln!(text, "    /// {}\n    {variant}({}),", event.doc, rust_path(&event.message));
    }
    text.push_str("}\n");
    let arm = |body: &dyn Fn(&EventSpec, &str) -> String| {
        events.iter().zip(&variants).map(|(e, v)| body(e, v)).collect::<String>()
    };
    let _ = write!(
        text,
        "impl crate::EventSet for {name} {{
    fn decode(message: &str, body: &[u8]) -> Result<Self, crate::DecodeError> {{
        match message {{
{}            other => Err(crate::DecodeError::Unexpected(other.to_owned())),
        }}
    }}
    fn any(&self) -> &dyn crate::AnyEvent {{ match self {{ {} }} }}
    fn any_mut(&mut self) -> &mut dyn crate::AnyEvent {{ match self {{ {} }} }}
    fn messages() -> &'static [&'static str] {{ &[{}] }}
}}
",
        arm(&|e, v| format!("            {:?} => Ok(Self::{v}(prost::Message::decode(body)?)),\n", e.message)),
        arm(&|_, v| format!("Self::{v}(m) => m, ")),
        arm(&|_, v| format!("Self::{v}(m) => m, ")),
        arm(&|e, _| format!("{:?}, ", e.message)),
    );
    for (event, variant) in events.iter().zip(&variants) {
        let path = rust_path(&event.message);
        let _ =
            writeln!(text, "impl From<{path}> for {name} {{ fn from(m: {path}) -> Self {{ Self::{variant}(m) }} }}");
    }
    text
}

fn deciders(contract: &Contract) -> String {
    let mut text = String::new();
    for decider in contract.services.iter().flat_map(|s| &s.deciders) {
        let inputs: Vec<&EventSpec> = decider.inputs.iter().filter_map(|i| contract.event(i)).collect();
        let facts: Vec<&EventSpec> = contract.facts_of(&decider.area).collect();
        let _ = writeln!(text, "/// What the decider `{}` hears and says.\npub mod {} {{", decider.name, decider.name);
        text.push_str(&event_enum("Input", "What it decides on.", &inputs));
        text.push_str(&event_enum("Fact", "What it alone publishes.", &facts));
        let refusal = facts.iter().find(|e| e.refusal);
        let body = match refusal {
            Some(e) => {
                let path = rust_path(&e.message);
                let keys = e
                    .keys
                    .iter()
                    .enumerate()
                    .map(|(i, k)| format!("{k}: keys.get({i}).cloned().unwrap_or_default(), "))
                    .collect::<String>();
                format!(
                    "Some({path} {{ {keys} command_id: command_id.to_owned(), command: command.to_owned(), code: refusal.code.into(), reason: refusal.reason.clone(), hint: refusal.hint.clone(), }}.into())"
                )
            }
            None => "{ let _ = (keys, command_id, command, refusal); None }".to_owned(),
        };
        let _ = write!(
            text,
            "impl crate::FactSet for Fact {{
    const AREA: &'static str = {:?};
    fn refused(keys: &[String], command_id: &str, command: &str, refusal: &crate::Refusal) -> Option<Self> {{ {body} }}
}}
/// Its name in the contract.
pub const NAME: &str = {:?};
}}
",
            decider.area, decider.name
        );
    }
    let mut of_stream = String::new();
    for stream in &contract.streams {
        let events: Vec<&EventSpec> = contract.events.iter().filter(|e| e.stream == stream.name).collect();
        if events.is_empty() {
            continue;
        }
        let module = stream.name.to_lowercase();
        let _ = writeln!(text, "/// Everything in the stream `{}`.\npub mod stream_{module} {{", stream.name);
        text.push_str(&event_enum("Event", &format!("Any event of `{}`.", stream.name), &events));
        text.push_str("}\n");
        let _ = writeln!(of_stream, "{:?} => read(stream_{module}::Event::decode(message, body)?.any()),", stream.name);
    }
    let _ = writeln!(
        text,
        "/// Decodes an event of a stream as the stream's own type, and reads it.
pub fn of_stream<T>(
    stream: &str,
    message: &str,
    body: &[u8],
    read: impl FnOnce(&dyn crate::AnyEvent) -> T,
) -> Result<T, crate::DecodeError> {{
    use crate::EventSet as _;
    Ok(match stream {{
        {of_stream}
        other => return Err(crate::DecodeError::Unexpected(other.to_owned())),
    }})
}}"
    );
    text
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}
