//! `tfs_controller`: puts a service descriptor into the web interface of a TeraFlowSDN controller.
//!
//! As its connector does: `GET /webui` for the form's token and the session's cookie, `POST /webui` with the descriptor
//! as a file of the form, and `GET` where that redirects to. The URL in the intent gives the host; its path is another
//! interface's.

use hyper::{
    StatusCode, Uri,
    header::{LOCATION, SET_COOKIE},
};

use super::{Adaptor, Call, Error, http::send};

const PATH: &str = "/webui";
/// Divides the parts of the form; a descriptor is JSON on one line, in which no line can begin so.
const BOUNDARY: &str = "continuum-descriptor-5b0c1f1e";

pub(super) struct Tfs;

#[tonic::async_trait]
impl Adaptor for Tfs {
    fn name(&self) -> &'static str {
        "tfs_controller"
    }

    async fn call(&self, call: &Call<'_>) -> Result<String, Error> {
        let uri: Uri =
            call.target.parse().map_err(|e| Error::Invalid(format!("{:?} is not a URL: {e}", call.target)))?;
        let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(Error::Invalid(format!("{:?} is not an http:// URL", call.target)));
        };
        let root = format!("http://{authority}");
        let form = send("GET", &format!("{root}{PATH}"), &[], "").await?;
        if form.status != StatusCode::OK {
            return Err(Error::Refused(format!("GET {PATH}: {}", form.status)));
        }
        let token = token(&String::from_utf8_lossy(&form.body))
            .ok_or_else(|| Error::Refused(format!("GET {PATH}: its form has no csrf_token")))?;
        let cookies: Vec<&str> = form
            .headers
            .get_all(SET_COOKIE)
            .iter()
            .filter_map(|cookie| cookie.to_str().ok()?.split(';').next())
            .collect();
        let cookies = cookies.join("; ");
        let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
        let headers = [("content-type", content_type.as_str()), ("cookie", cookies.as_str())];
        let posted =
            send("POST", &format!("{root}{PATH}"), &headers, multipart(&token, &call.body.to_string())).await?;
        if posted.status != StatusCode::FOUND {
            return Err(Error::Refused(format!("POST {PATH}: {}, not the redirect of success", posted.status)));
        }
        let place = posted.headers.get(LOCATION).and_then(|l| l.to_str().ok()).unwrap_or("/webui/");
        let place = match place.parse::<Uri>() {
            // Only ever the same host.
            Ok(uri) => uri.path_and_query().map_or("/webui/", |p| p.as_str()).to_owned(),
            Err(_) => "/webui/".to_owned(),
        };
        let seen = send("GET", &format!("{root}{place}"), &[("cookie", cookies.as_str())], "").await?;
        if seen.status != StatusCode::OK {
            return Err(Error::Refused(format!("GET {place}: {}", seen.status)));
        }
        Ok(format!("GET {} POST {} GET {}", form.status.as_u16(), posted.status.as_u16(), seen.status.as_u16()))
    }
}

/// The value of the form's hidden field `csrf_token`.
fn token(page: &str) -> Option<String> {
    page.split('<').filter(|tag| tag.starts_with("input")).find_map(|tag| {
        let tag = tag.split('>').next()?;
        let attribute = |name: &str| {
            let (_, rest) = tag.split_once(&format!(" {name}="))?;
            let quote = rest.chars().next().filter(|c| ['"', '\''].contains(c))?;
            rest.get(1..)?.split(quote).next()
        };
        (attribute("name")? == "csrf_token").then(|| attribute("value")).flatten().map(ToOwned::to_owned)
    })
}

fn multipart(token: &str, descriptor: &str) -> String {
    format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"csrf_token\"\r\n\r\n{token}\r\n\
         --{BOUNDARY}\r\nContent-Disposition: form-data; name=\"descriptors\"; filename=\"service.json\"\r\n\
         Content-Type: application/json\r\n\r\n{descriptor}\r\n--{BOUNDARY}--\r\n"
    )
}
