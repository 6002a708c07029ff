//! The printer beside that of `serde_lexpr`, which it has to agree with.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Each shape that data of serde may have.
#[derive(Clone, Debug, Serialize)]
enum Shape {
    Unit,
    Nothing(()),
    Is(bool),
    Number(u64),
    Signed(i64),
    Float(f64),
    Letter(char),
    Text(String),
    Maybe(Option<Box<Shape>>),
    List(Vec<Shape>),
    Named(BTreeMap<String, Shape>),
    Numbered(BTreeMap<i8, Shape>),
    Two(Box<Shape>, Box<Shape>),
    Struct { bytes: u64, of: Box<Shape>, list: Vec<Shape>, none: Option<u8> },
    Tuple((Box<Shape>, u8)),
    Of(Of),
    Pair(Pair),
    Empty(Empty),
}

#[derive(Clone, Debug, Serialize)]
struct Of(Box<Shape>);

#[derive(Clone, Debug, Serialize)]
struct Pair(u16, Box<Shape>);

#[derive(Clone, Debug, Serialize)]
struct Empty;

fn shapes() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        Just(Shape::Unit),
        Just(Shape::Nothing(())),
        Just(Shape::Empty(Empty)),
        Just(Shape::Maybe(None)),
        any::<bool>().prop_map(Shape::Is),
        any::<u64>().prop_map(Shape::Number),
        any::<i64>().prop_map(Shape::Signed),
        (-1e9..1e9).prop_map(Shape::Float),
        any::<char>().prop_map(Shape::Letter),
        "[\\x00-\\x7f€λ\"\\\\]{0,12}".prop_map(Shape::Text),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        let boxed = || inner.clone().prop_map(Box::new);
        let list = || prop::collection::vec(inner.clone(), 0..4);
        prop_oneof![
            boxed().prop_map(|one| Shape::Maybe(Some(one))),
            list().prop_map(Shape::List),
            prop::collection::btree_map("[a-z\"]{0,3}", inner.clone(), 0..3).prop_map(Shape::Named),
            prop::collection::btree_map(any::<i8>(), inner.clone(), 0..3).prop_map(Shape::Numbered),
            (boxed(), boxed()).prop_map(|(one, other)| Shape::Two(one, other)),
            (any::<u64>(), boxed(), list()).prop_map(|(bytes, of, list)| Shape::Struct { bytes, of, list, none: None }),
            (boxed(), any::<u8>()).prop_map(Shape::Tuple),
            boxed().prop_map(|of| Shape::Of(Of(of))),
            (any::<u16>(), boxed()).prop_map(|(number, of)| Shape::Pair(Pair(number, of))),
        ]
    })
}

proptest! {
    #[test]
    fn the_text_is_that_of_the_printer_of_values(shape in shapes()) {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let printed = |dialect| text(print(&shape, dialect).unwrap());
        prop_assert_eq!(printed(Dialect::Scheme), text(serde_lexpr::to_vec(&shape).unwrap()));
        let lisp = serde_lexpr::to_vec_custom(&shape, Options::elisp()).unwrap();
        prop_assert_eq!(printed(Dialect::Lisp), text(lisp));
    }
}

#[test]
fn a_text_is_escaped_as_the_printer_of_values_does() {
    let all: String = (0..0x100).filter_map(char::from_u32).collect();
    for text in ["", "a", "\"", "a\\", &all] {
        let scheme = serde_lexpr::to_vec(&text).unwrap();
        assert_eq!(print(&text, Dialect::Scheme).unwrap(), scheme);
        assert_eq!(print(&format_args!("{text}"), Dialect::Scheme).unwrap(), scheme);
        let lisp = serde_lexpr::to_vec_custom(&text, Options::elisp()).unwrap();
        assert_eq!(print(&text, Dialect::Lisp).unwrap(), lisp);
    }
}

#[test]
fn a_path_that_is_no_text_is_an_error() {
    use std::os::unix::ffi::OsStrExt;
    let path = std::path::Path::new(std::ffi::OsStr::from_bytes(b"/\xff"));
    assert!(print(&path, Dialect::Scheme).is_err());
}
