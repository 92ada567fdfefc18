//! The OpenAPI document as a page to read: made here, without scripts and without other hosts.

use std::fmt::Write as _;

use mesh_rest::access::who_may;

use crate::domain::table::{ROUTES, refusals};

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The page.
pub(crate) fn openapi() -> String {
    let mut page = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Continuum API</title><style>\
        body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
        code{font-family:ui-monospace,monospace}table{border-collapse:collapse;width:100%}\
        td,th{border-bottom:1px solid #ccc;padding:.3rem .6rem;text-align:left;vertical-align:top}</style>\
        <h1>Continuum API</h1><p>For machines: <a href=\"/openapi.json\"><code>/openapi.json</code></a> (OpenAPI 3.1), \
        with the schema of every body. Send <code>Authorization: Bearer</code> and a token of \
        <code>continuum token</code>. Refusals are problem documents (RFC 9457).</p>\
        <table><tr><th>Request<th>What it does<th>For<th>Answers</tr>"
        .to_owned();
    for route in ROUTES {
        let query: String = route.query.iter().map(|name| format!(" <code>?{name}=</code>")).collect();
        let body = match route.body {
            "" => String::new(),
            name => format!(" Body: <a href=\"/openapi.json\">{name}</a>."),
        };
        let done = route.answers.iter().map(|(status, _)| *status);
        let answers: Vec<String> = done.chain(refusals(route)).map(|status| status.to_string()).collect();
        let _infallible = write!(
            page,
            "<tr><td><code>{} {}</code><td>{}.{body}{query}<td>{}<td>{}</tr>",
            route.method,
            escaped(route.path),
            escaped(route.summary),
            route.action.map_or_else(|| "everybody".into(), who_may),
            answers.join(", ")
        );
    }
    page.push_str("</table></html>");
    page
}
