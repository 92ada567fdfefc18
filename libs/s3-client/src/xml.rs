//! The XML of S3 answers: elements by their local names, with their texts.

use quick_xml::{
    Reader,
    escape::resolve_xml_entity,
    events::{BytesRef, Event},
};

/// Elements inside of each other at most.
const DEPTH_MAX: usize = 16;

/// An element.
#[derive(Debug, Default)]
pub(super) struct Element {
    name: String,
    content: String,
    children: Vec<Element>,
}

impl Element {
    /// The children of a name.
    pub(super) fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// Its own name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The text of the first child of a name.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.children.iter().find(|child| child.name == name).map(|child| child.content.as_str())
    }
}

/// The root element of a document; `None` if it is not well-formed.
pub(super) fn parse(text: &str) -> Option<Element> {
    let mut reader = Reader::from_str(text);
    // The document itself, and the elements that are open.
    let mut open = vec![Element::default()];
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) => {
                if open.len() > DEPTH_MAX {
                    return None;
                }
                open.push(named(start.local_name().as_ref())?);
            }
            Event::Empty(start) => open.last_mut()?.children.push(named(start.local_name().as_ref())?),
            Event::End(_) => {
                let element = open.pop()?;
                open.last_mut()?.children.push(element);
            }
            Event::Text(text) => open.last_mut()?.content.push_str(&text.decode().ok()?),
            Event::CData(text) => open.last_mut()?.content.push_str(&text.decode().ok()?),
            Event::GeneralRef(reference) => {
                let resolved = resolve(&reference)?;
                open.last_mut()?.content.push_str(&resolved);
            }
            Event::Eof => break,
            _ => {}
        }
    }
    let [document] = <[Element; 1]>::try_from(open).ok()?;
    let [root] = <[Element; 1]>::try_from(document.children).ok()?;
    Some(root)
}

fn named(name: &[u8]) -> Option<Element> {
    Some(Element { name: std::str::from_utf8(name).ok()?.to_owned(), ..Element::default() })
}

fn resolve(reference: &BytesRef<'_>) -> Option<String> {
    match reference.resolve_char_ref().ok()? {
        Some(character) => Some(character.into()),
        None => resolve_xml_entity(&reference.decode().ok()?).map(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_keys_are_read_as_xml_says() {
        let error =
            parse("<?xml version=\"1.0\"?>\n<Error><Code>NoSuchBucket</Code><Message>a &lt;b&gt;</Message></Error>");
        let error = error.unwrap();
        assert_eq!((error.text("Code"), error.text("Message")), (Some("NoSuchBucket"), Some("a <b>")));
        // Neither a comment, nor a message, nor an element further inside is the code.
        let other = "<Error><!-- NoSuchBucket --><Code>NoSuchKey</Code><Message>NoSuchBucket</Message>\
                     <Detail><Code>NoSuchBucket</Code></Detail></Error>";
        assert_eq!(parse(other).unwrap().text("Code"), Some("NoSuchKey"));
        let list = "<s:List xmlns:s=\"http://s3\"><s:Contents><s:Key>a&amp;&#x62;</s:Key></s:Contents>\
                    <s:Contents><s:Key><![CDATA[<c>]]></s:Key></s:Contents></s:List>";
        let list = parse(list).unwrap();
        let keys: Vec<_> = list.children("Contents").filter_map(|entry| entry.text("Key")).collect();
        assert_eq!(keys, ["a&b", "<c>"]);
        for bad in ["", "<a>", "<a></b>", "text", &"<a>".repeat(100)] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
