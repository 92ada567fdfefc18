//! Answers for twins over Zenoh, where there is no bus: `continuum/twin/<kind>/<id>`, in protobuf or, with `?format=json`,
//! in JSON.

use bytes::Bytes;
use mesh_kit::{Mesh, View};
use mesh_proto::{twin::Twin, twin_key, twin_of_key};
use prost::Message as _;

use mesh_bus::{Encoded, Question, QuestionStream, SamplesError};

use crate::domain::{Kind, Twins};

/// Twins that one question is answered with.
const ANSWERS_MAX: usize = 1_000;

/// Answers until the process stops.
pub(crate) async fn answer(mesh: Mesh, view: View<Twins>, mut questions: QuestionStream) -> anyhow::Result<()> {
    let stopping = mesh.stopping();
    loop {
        let question = tokio::select! {
            question = questions.next() => question,
            () = stopping.cancelled() => return Ok(()),
        };
        let Some(question) = question else { return Ok(()) };
        if let Err(error) = answer_one(&mesh, &view, &question).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "question not answered");
        }
    }
}

async fn answer_one(mesh: &Mesh, view: &View<Twins>, question: &Question) -> Result<(), SamplesError> {
    let encoded = match encoded(question.parameters()) {
        Ok(encoded) => encoded,
        Err(why) => return question.refuse(&why).await,
    };
    let now = mesh.now();
    let exact = twin_of_key(question.key()).filter(|_| !question.key().contains('*'));
    let twins: Vec<Twin> = match exact {
        Some((kind, id)) => {
            let found = Kind::named(kind).and_then(|kind| view.read(|twins| twins.get(kind, id, now)));
            let Some(twin) = found else {
                let why =
                    format!("twin {id} of kind {kind} not found; ask for continuum/twin/*/* to see those there are");
                return question.refuse(&why).await;
            };
            vec![twin]
        }
        None => {
            let is_meant = |kind: Kind, id: &str| question.asks_for(&twin_key(kind.name(), id));
            let keys: Vec<_> = view.read(|twins| {
                twins.keys().filter(|(kind, id)| is_meant(*kind, id)).take(ANSWERS_MAX + 1).cloned().collect()
            });
            if keys.len() > ANSWERS_MAX {
                let why = format!("more than {ANSWERS_MAX} twins match; ask for one kind, or for some by their ids");
                return question.refuse(&why).await;
            }
            keys.iter().filter_map(|(kind, id)| view.read(|twins| twins.get(*kind, id, now))).collect()
        }
    };
    for twin in twins {
        question.answer(&twin_key(&twin.kind, &twin.id), body(&twin, encoded), encoded).await?;
    }
    Ok(())
}

fn body(twin: &Twin, encoded: Encoded) -> Bytes {
    let bytes = twin.encode_to_vec();
    match encoded {
        Encoded::Protobuf => bytes.into(),
        Encoded::Json => {
            let value = mesh_proto::json::to_value("continuum.twin.v1.Twin", &bytes).unwrap_or_default();
            value.to_string().into()
        }
    }
}

/// How an answer is to be encoded, by the parameters of a question; or why they cannot be.
fn encoded<'a>(parameters: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Encoded, String> {
    let mut found = None;
    for (name, value) in parameters {
        let encoded = match (name, value) {
            ("format", "protobuf") => Encoded::Protobuf,
            ("format", "json") => Encoded::Json,
            ("format", other) => return Err(format!("format {other:?} is not known; use json or protobuf")),
            (other, _) => return Err(format!("parameter {other:?} is not known; there is only format")),
        };
        if found.replace(encoded).is_some() {
            return Err("format comes twice; give it once".into());
        }
    }
    Ok(found.unwrap_or(Encoded::Protobuf))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_as_it_asks_or_refused_with_what_is_wrong() {
        let read = |parameters: &[(&'static str, &'static str)]| encoded(parameters.iter().copied());
        assert_eq!(read(&[]), Ok(Encoded::Protobuf));
        assert_eq!(read(&[("format", "json")]), Ok(Encoded::Json));
        assert!(read(&[("format", "xml")]).unwrap_err().contains("use json or protobuf"));
        assert!(read(&[("at", "now")]).unwrap_err().contains("parameter \"at\""));
        assert!(read(&[("format", "json"), ("format", "json")]).unwrap_err().contains("twice"));
    }

    #[test]
    fn a_twin_in_json_is_spelt_as_everywhere() {
        let twin = Twin { kind: "node".into(), cpu_percent: 1.5, ..Twin::default() };
        assert_eq!(body(&twin, Encoded::Json), r#"{"cpuPercent":1.5,"kind":"node"}"#);
        assert_eq!(Twin::decode(body(&twin, Encoded::Protobuf)), Ok(twin));
    }
}
