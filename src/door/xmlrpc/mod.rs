//! XML-RPC documents: values, calls and responses, read strictly and written plainly.
//!
//! Only what XML-RPC needs of XML is accepted: UTF-8, the five predefined entities and numeric ones, no
//! document type, no attributes, no namespaces. So there is no entity to expand, and a document of *n*
//! bytes becomes a value of no more than *n* times a constant; depth and size are bounded on top.

mod read;
mod value;
mod write;

pub use self::read::{read_call, read_records, read_response};
pub use self::value::{Malformed, Response, Value, is_legal};
pub use self::write::{can_carry, escaped, write_call, write_fault, write_response};

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Write;

    use super::*;
    use proptest::prelude::*;

    const CALL: &str =
        "<methodCall><methodName>m</methodName><params><param><value>V</value></param></params></methodCall>";

    fn read_value(inner: &str) -> Result<Value, Malformed> {
        read_call(&CALL.replace('V', inner)).map(|(_, mut params)| params.remove(0))
    }

    #[test]
    fn what_xapi_and_the_python_library_write_is_read() {
        for (inner, value) in [
            ("", Value::text("")),
            ("<string/>", Value::text("")),
            (" x ", Value::text(" x ")),
            ("<string>a&lt;b&amp;&#233;&#x1F600;<![CDATA[<&]]></string>", Value::text("a<b&é😀<&")),
            ("<struct/>", Value::Struct(BTreeMap::new())),
            ("<array><data/></array>", Value::Array(vec![])),
            ("\n<array>\n<data>\n<value>1</value>\n</data></array>\n", Value::Array(vec![Value::text("1")])),
            ("<struct><member><name>a</name><value>b</value></member></struct>", Value::map([("a", "b")])),
            ("<boolean>1</boolean>", Value::Boolean(true)),
            ("<i4>-3</i4>", Value::Int(-3)),
            ("<nil/>", Value::Nil),
            ("a<!-- no -->b<?pi?>c", Value::text("abc")),
        ] {
            assert_eq!(read_value(inner).as_ref(), Ok(&value), "{inner}");
        }
        let declared = format!("<?xml version='1.0' encoding='UTF-8'?>\n{CALL}\n");
        assert!(read_call(&declared).is_ok());
        assert!(read_call("<methodCall><methodName>m</methodName></methodCall>").is_ok());
    }

    #[test]
    fn what_is_no_xml_rpc_is_refused_with_its_place() {
        for bad in [
            "<string>a",
            "<string>a</int>",
            "<string a='1'>x</string>",
            "<int>1</int><int>2</int>",
            "x<int>1</int>",
            "<int>x</int>",
            "<int>99999999999999999999</int>",
            "<boolean>true</boolean>",
            "<float>1</float>",
            "<array><value>1</value></array>",
            "<array><data><member/></data></array>",
            "<struct><member><value>1</value><name>a</name></member></struct>",
            "<struct><member><name>a</name></member></struct>",
            "<struct><member><name>a</name><value/></member><member><name>a</name><value/></member></struct>",
            "&nbsp;",
            "&#0;",
            "&#xD800;",
            "&",
            "\u{1}",
            "<x:string xmlns:x='y'/>",
        ] {
            assert!(read_value(bad).is_err(), "{bad}");
        }
        for bad in ["", " ", "x", "<a/>", "<methodCall/>", &format!("{CALL}{CALL}"), &format!("{CALL}x"), "<!-- -- -->"]
        {
            assert!(read_call(bad).is_err(), "{bad}");
        }
        let latin = format!("<?xml version='1.0' encoding='ISO-8859-1'?>{CALL}");
        assert!(read_call(&latin).is_err());
    }

    #[test]
    fn what_is_said_of_a_broken_document_is_nothing_that_it_holds() {
        for bad in
            ["a</s3cret>", "<s3cret>", "</s3cret>", "&s3cret;", "&s3cret", "<!-- s3cret -- -->", "<?xml s3cret?>"]
        {
            let said = read_value(bad).unwrap_err().to_string();
            assert!(!said.contains("s3cret"), "{bad}: {said}");
        }
        let said = read_call("<methodCall><methodName>s3cret").unwrap_err().to_string();
        assert!(!said.contains("s3cret"), "{said}");
    }

    #[test]
    fn a_billion_laughs_and_a_deep_document_are_refused_at_once() {
        let mut laughs = String::from("<?xml version='1.0'?><!DOCTYPE lolz [<!ENTITY lol0 'lol'>");
        for i in 1..10 {
            let _ = write!(laughs, "<!ENTITY lol{i} '{}'>", format!("&lol{};", i - 1).repeat(10));
        }
        laughs += "]><methodCall><methodName>&lol9;</methodName></methodCall>";
        assert!(read_call(&laughs).unwrap_err().to_string().contains("document type"));
        let deep = "<array><data><value>".repeat(1_000_000);
        assert!(read_value(&deep).unwrap_err().to_string().contains("nested"));
        let elements = "<a>".repeat(1_000_000);
        assert!(read_call(&elements).is_err());
        let long = "x".repeat(10 << 20);
        assert_eq!(read_value(&long).unwrap().as_str().unwrap().len(), 10 << 20);
    }

    #[test]
    fn a_fault_has_an_int_and_is_read_back() {
        let text = write_fault(46, "The VDI is not available [opterr=a <b> & \u{1}]");
        assert!(text.contains("<name>faultCode</name><value><int>46</int></value>"), "{text}");
        let message = "The VDI is not available [opterr=a <b> & \u{fffd}]".to_owned();
        assert_eq!(read_response(&text).unwrap(), Response::Fault { code: 46, message });
    }

    #[test]
    fn of_records_only_what_is_wanted_is_kept() {
        let record = |extra: bool| {
            let mut members = BTreeMap::from([("a".to_owned(), Value::map([("b", "<1>"), ("c", "2")]))]);
            if extra {
                members.insert("b".to_owned(), Value::Array(vec![Value::text("&"), Value::map([("a", "")])]));
                members.insert(String::new(), Value::text(""));
            }
            Value::Struct(members)
        };
        let answer = |extra| {
            let records = ["x", "b"].map(|name| (name.to_owned(), record(extra)));
            let members = [("Status", Value::text("Success")), ("Value", Value::Struct(records.into()))];
            Value::Struct(members.map(|(name, value)| (name.to_owned(), value)).into())
        };
        let document = write_response(&answer(true));
        assert_eq!(read_records(&document, &["a"]), Ok(Response::Value(answer(false))));
        assert_eq!(read_records(&document, &["a", "b", ""]), Ok(Response::Value(answer(true))));
        for (from, to) in [("<value>&amp;</value>", "<value>&amp;</valu>"), ("&amp;", "<!DOCTYPE x>"), ("</array>", "")]
        {
            assert!(read_records(&document.replace(from, to), &["a"]).is_err(), "{from} {to}");
        }
        for cut in 0..document.trim_end().len() {
            assert!(read_records(&document[..cut], &["a"]).is_err(), "{cut}");
        }
        let deep = "<array><data><value>".repeat(1_000_000);
        assert!(read_records(&document.replace("&amp;", &deep), &["a"]).is_err());
    }

    fn values() -> impl Strategy<Value = Value> {
        let text = "[\\PC\t\r\n<>&\"']*";
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<bool>().prop_map(Value::Boolean),
            any::<i64>().prop_map(Value::Int),
            text.prop_map(Value::String),
        ];
        leaf.prop_recursive(4, 64, 8, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
                prop::collection::btree_map(text, inner, 0..8).prop_map(Value::Struct),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in values()) {
            prop_assert_eq!(read_response(&write_response(&value)).unwrap(), Response::Value(value.clone()));
            let (method, params) = read_call(&write_call("a.b", std::slice::from_ref(&value))).unwrap();
            prop_assert_eq!((method.as_str(), params.as_slice()), ("a.b", std::slice::from_ref(&value)));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>()) {
            let _ = (read_call(&text), read_response(&text), read_records(&text, &["a"]));
        }

        /// A document with pieces cut out, doubled and exchanged reaches deeper than noise does.
        #[test]
        fn no_mutilated_document_makes_the_reader_panic(
            value in values(), cuts in prop::collection::vec((any::<prop::sample::Index>(), 0usize..40, 0..4u8), 1..6)
        ) {
            let mut text = write_call("m", &[value]);
            for (at, length, how) in cuts {
                let bounds: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
                let Some(start) = (!bounds.is_empty()).then(|| at.index(bounds.len())) else { continue };
                let end = bounds.get(start + length).copied().unwrap_or(text.len());
                let piece = text[bounds[start]..end].to_owned();
                match how {
                    0 => text.replace_range(bounds[start]..end, ""),
                    1 => text.insert_str(bounds[start], &piece),
                    2 => text.insert_str(bounds[start], "<value><struct>"),
                    _ => text.insert_str(bounds[start], "&<!DOCTYPE]]>--\0"),
                }
            }
            let _ = (read_call(&text), read_response(&text), read_records(&text, &["a"]));
        }
    }
}
