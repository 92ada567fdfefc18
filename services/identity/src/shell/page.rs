//! The page on which people sign in.

use axum::{body::Body, response::Response};
use http::{StatusCode, header};
use mesh_rest::http::with;

use crate::{api::uncached, domain::pkce};

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

/// The page. It runs no script, and no other page can embed it.
pub(crate) fn page(status: StatusCode, wanted: &pkce::Authorization, message: &str) -> Response {
    let fields = [
        ("response_type", &wanted.response_type),
        ("client_id", &wanted.client_id),
        ("redirect_uri", &wanted.redirect_uri),
        ("state", &wanted.state),
        ("code_challenge", &wanted.code_challenge),
        ("code_challenge_method", &wanted.code_challenge_method),
    ];
    let hidden: String = fields
        .iter()
        .map(|(name, value)| format!("<input type=\"hidden\" name=\"{name}\" value=\"{}\">", escaped(value)))
        .collect();
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Sign in to Continuum</title>\
         <h1>Sign in to Continuum</h1><p role=\"alert\">{}</p><form method=\"post\" action=\"/oauth/authorize\">{hidden}\
         <p><label>Name <input name=\"username\" autocomplete=\"username\" required autofocus></label></p>\
         <p><label>Password <input name=\"password\" type=\"password\" autocomplete=\"current-password\" required></label></p>\
         <p><button>Sign in</button></p></form></html>",
        escaped(message)
    );
    let mut response = Response::new(Body::from(html));
    *response.status_mut() = status;
    let response = with(response, header::CONTENT_TYPE, "text/html; charset=utf-8");
    let response = with(response, header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'");
    uncached(response)
}
