//! Bodies in XML, read as XML says: names by their namespace, CDATA, references, comments. `s3s` is given the same document in
//! the plain form that it reads, and only with elements that are acted on.

use quick_xml::{
    NsReader, XmlVersion,
    escape::{escape, resolve_xml_entity},
    events::{BytesRef, Event},
    name::ResolveResult,
};
use s3s::{S3Error, S3Result, s3_error};

/// The namespace of S3.
const NAMESPACE: &[u8] = b"http://s3.amazonaws.com/doc/2006-03-01/";
/// Elements inside of each other at most.
const DEPTH_MAX: usize = 8;

/// Elements that are acted on, as paths.
const HONOURED: &[&str] = &[
    "CreateBucketConfiguration",
    "CreateBucketConfiguration/LocationConstraint",
    "Delete",
    "Delete/Quiet",
    "Delete/Object",
    "Delete/Object/Key",
    "Delete/Object/VersionId",
    "Delete/Object/ETag",
    "CompleteMultipartUpload",
    "CompleteMultipartUpload/Part",
    "CompleteMultipartUpload/Part/PartNumber",
    "CompleteMultipartUpload/Part/ETag",
    "CompleteMultipartUpload/Part/ChecksumCRC32",
    "CompleteMultipartUpload/Part/ChecksumCRC32C",
    "CompleteMultipartUpload/Part/ChecksumCRC64NVME",
    "CompleteMultipartUpload/Part/ChecksumSHA1",
    "CompleteMultipartUpload/Part/ChecksumSHA256",
    "VersioningConfiguration",
    "VersioningConfiguration/Status",
    "VersioningConfiguration/MfaDelete",
    "Tagging",
    "Tagging/TagSet",
    "Tagging/TagSet/Tag",
    "Tagging/TagSet/Tag/Key",
    "Tagging/TagSet/Tag/Value",
    "CORSConfiguration",
    "CORSConfiguration/CORSRule",
    "CORSConfiguration/CORSRule/ID",
    "CORSConfiguration/CORSRule/AllowedHeader",
    "CORSConfiguration/CORSRule/AllowedMethod",
    "CORSConfiguration/CORSRule/AllowedOrigin",
    "CORSConfiguration/CORSRule/ExposeHeader",
    "CORSConfiguration/CORSRule/MaxAgeSeconds",
    "AccessControlPolicy",
    "AccessControlPolicy/Owner",
    "AccessControlPolicy/Owner/ID",
    "AccessControlPolicy/Owner/DisplayName",
    "AccessControlPolicy/AccessControlList",
    "AccessControlPolicy/AccessControlList/Grant",
    "AccessControlPolicy/AccessControlList/Grant/Permission",
    "AccessControlPolicy/AccessControlList/Grant/Grantee",
    "AccessControlPolicy/AccessControlList/Grant/Grantee/ID",
    "AccessControlPolicy/AccessControlList/Grant/Grantee/DisplayName",
    "AccessControlPolicy/AccessControlList/Grant/Grantee/URI",
    "AccessControlPolicy/AccessControlList/Grant/Grantee/EmailAddress",
];

/// Elements that S3 has and that are not acted on.
const REFUSED: &[&str] = &[
    "CreateBucketConfiguration/Location",
    "CreateBucketConfiguration/Bucket",
    "CreateBucketConfiguration/Tags",
    "Delete/Object/LastModifiedTime",
    "Delete/Object/Size",
];

fn malformed(why: impl std::fmt::Display) -> S3Error {
    s3_error!(MalformedXML, "the body is not the XML that this request takes: {why}")
}

fn resolve(reference: &BytesRef<'_>) -> Option<String> {
    match reference.resolve_char_ref().ok()? {
        Some(character) => Some(character.into()),
        None => resolve_xml_entity(&reference.decode().ok()?).map(Into::into),
    }
}

/// Text so that any reader gives it back: a carriage return would be read as a line feed.
fn text(content: &str) -> String {
    escape(content).replace('\r', "&#13;")
}

/// The same document, whose root must have this name, without prefixes, CDATA, comments and the like.
pub(super) fn plain(body: &[u8], root: &str) -> S3Result<String> {
    let body = std::str::from_utf8(body).map_err(|_| malformed("it is not UTF-8"))?;
    let mut reader = NsReader::from_str(body.trim_start_matches('\u{feff}'));
    let (mut plain, mut path, mut content) = (String::new(), vec![], String::new());
    let (mut had_children, mut roots) = (vec![], 0);
    loop {
        let event = reader.read_event().map_err(malformed)?;
        match event {
            Event::Start(start) => {
                open(&mut reader, &start, &mut path, root)?;
                roots += usize::from(path.len() == 1);
                if roots > 1 {
                    return Err(malformed("it has two roots"));
                }
                blank(&mut content)?;
                if let Some(parent) = had_children.last_mut() {
                    *parent = true;
                }
                had_children.push(false);
                plain.push_str(&match path[path.len() - 1].as_str() {
                    // `s3s` wants the kind; whom it names is decided on its other elements.
                    "Grantee" => "<Grantee xsi:type=\"CanonicalUser\">".to_owned(),
                    name => format!("<{name}>"),
                });
            }
            Event::Empty(start) => {
                open(&mut reader, &start, &mut path, root)?;
                roots += usize::from(path.len() == 1);
                blank(&mut content)?;
                if let Some(parent) = had_children.last_mut() {
                    *parent = true;
                }
                if let Some(name) = path.pop() {
                    plain.push_str(&format!("<{name}></{name}>"));
                }
            }
            Event::End(_) => {
                let Some(name) = path.pop() else { return Err(malformed("an element ends that never began")) };
                if had_children.pop().unwrap_or_default() {
                    blank(&mut content)?;
                }
                // A key or the value of a tag may begin or end with blanks, and nothing else does.
                let value = if name == "Key" || name == "Value" { content.as_str() } else { content.trim() };
                plain.push_str(&text(value));
                content.clear();
                plain.push_str(&format!("</{name}>"));
            }
            Event::Text(text) => content.push_str(&text.xml_content(XmlVersion::Explicit1_0).map_err(malformed)?),
            Event::CData(text) => content.push_str(&text.xml_content(XmlVersion::Explicit1_0).map_err(malformed)?),
            Event::GeneralRef(reference) => {
                content.push_str(&resolve(&reference).ok_or_else(|| malformed("it refers to an unknown entity"))?);
            }
            Event::DocType(_) => return Err(malformed("it has a document type; send none")),
            Event::Comment(_) | Event::PI(_) | Event::Decl(_) => {}
            Event::Eof => break,
        }
        if path.is_empty() && !content.trim().is_empty() {
            return Err(malformed("it has text outside of its root"));
        }
    }
    if !path.is_empty() || roots != 1 {
        return Err(malformed("it ends before its root does, or has none or two"));
    }
    Ok(plain)
}

/// Between elements there are only blanks.
fn blank(content: &mut String) -> S3Result<()> {
    if !content.trim().is_empty() {
        return Err(malformed(format_args!("the text {:?} is between elements", content.trim())));
    }
    content.clear();
    Ok(())
}

fn open(
    reader: &mut NsReader<&[u8]>,
    start: &quick_xml::events::BytesStart<'_>,
    path: &mut Vec<String>,
    root: &str,
) -> S3Result<()> {
    let (namespace, local) = reader.resolver().resolve_element(start.name());
    match namespace {
        ResolveResult::Unbound => {}
        ResolveResult::Bound(namespace) if namespace.as_ref() == NAMESPACE => {}
        _ => return Err(malformed("an element is of another namespace than S3")),
    }
    let name = std::str::from_utf8(local.as_ref()).map_err(malformed)?.to_owned();
    if path.is_empty() && name != root {
        return Err(malformed(format_args!("its root is {name}, and not {root}")));
    }
    if path.len() >= DEPTH_MAX {
        return Err(malformed("it is too deep"));
    }
    path.push(name);
    let at = path.join("/");
    match () {
        () if HONOURED.contains(&at.as_str()) => Ok(()),
        () if REFUSED.contains(&at.as_str()) => Err(s3_error!(NotImplemented, "{at} is not supported; leave it out")),
        () => Err(malformed(format_args!("{at} is unknown"))),
    }
}

/// XML that any reader takes as it was meant, as far as XML 1.0 can: characters that it has no form for are written as S3
/// writes them, by their number.
pub(super) fn numbered(body: &[u8]) -> Option<Vec<u8>> {
    let is_odd = |byte: u8| byte < 0x20 && byte != b'\n' && byte != b'\t';
    if !body.iter().any(|byte| is_odd(*byte)) {
        return None;
    }
    Some(body.iter().fold(Vec::with_capacity(body.len() + 64), |mut out, &byte| {
        match is_odd(byte) {
            true => out.extend_from_slice(format!("&#x{byte:x};").as_bytes()),
            false => out.push(byte),
        }
        out
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(body: &str, root: &str) -> String {
        plain(body.as_bytes(), root).unwrap_or_else(|error| error.code().as_str().to_owned())
    }

    #[test]
    fn xml_is_xml() {
        let expected = "<Delete><Object><Key>a&amp;b &lt;c&gt; </Key></Object><Quiet>true</Quiet></Delete>";
        for body in [
            "<Delete><Object><Key>a&amp;b &lt;c> </Key></Object><Quiet> true\n</Quiet></Delete>",
            "<?xml version=\"1.0\"?>\n<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\n <Object>\n  \
             <Key><![CDATA[a&b <c> ]]></Key></Object><Quiet>true</Quiet></Delete>\n",
            "<s:Delete xmlns:s='http://s3.amazonaws.com/doc/2006-03-01/'><!-- <Object/> --><s:Object><s:Key>a&#38;b \
             <![CDATA[<c>]]><!-- x --> </s:Key></s:Object><s:Quiet>true</s:Quiet></s:Delete>",
            "\u{feff}<Delete><Object><Key>a&#x26;b &#60;c&gt;&#32;</Key></Object><Quiet>true</Quiet></Delete>",
        ] {
            assert_eq!(code(body, "Delete"), expected, "{body}");
        }
        let odd = code("<Delete><Object><Key>a&#13;&#1;</Key></Object></Delete>", "Delete");
        assert_eq!(odd, "<Delete><Object><Key>a&#13;\u{1}</Key></Object></Delete>");
        for body in [
            "",
            "<Delete>",
            "<Delete></Remove>",
            "<Delete/><Delete/>",
            "text",
            "<Delete>text<Object><Key>a</Key></Object></Delete>",
            "<Delete/>text",
            "<x:Delete xmlns:x=\"urn:other\"/>",
            "<x:Delete/>",
            "<CompleteMultipartUpload/>",
            "<Delete><Object><Key>a</Key><Unknown>1</Unknown></Object></Delete>",
            "<Delete><Object><Key>a<Key>b</Key></Key></Object></Delete>",
            "<!DOCTYPE Delete [<!ENTITY a \"b\">]><Delete><Object><Key>&a;</Key></Object></Delete>",
            "<Delete><Object><Key>&unknown;</Key></Object></Delete>",
        ] {
            assert_eq!(code(body, "Delete"), "MalformedXML", "{body}");
        }
        let refused = "<Delete><Object><Key>a</Key><Size>1</Size></Object></Delete>";
        assert_eq!(code(refused, "Delete"), "NotImplemented");
    }

    #[test]
    fn characters_that_xml_has_no_form_for_are_written_by_their_number() {
        assert_eq!(numbered(b"<Key>a\n</Key>"), None);
        assert_eq!(numbered(b"<Key>a\x01\r</Key>").unwrap(), b"<Key>a&#x1;&#xd;</Key>");
    }
}
