//! Plain data as the text of an s-expression, byte for byte as `serde_lexpr` writes it, without the tree of values that
//! `serde_lexpr` makes first: for the answer of a scan, that tree took more time than the reading of the images.
//!
//! A pair whose second part is a list is written as one list: `(SR . "87b8…")`, but `(VBDs "host1/vm7")` and `(VBDs)`. So a
//! value has to know whether it is written after the first part of a pair, see [`Spot::Tail`].

use std::fmt::{self, Write};

use serde::Serialize;
use serde::ser::{self, SerializeMap};
use serde_lexpr::print::{Options, to_vec_custom};
use serde_lexpr::{Error, Result, Value};

/// Who reads the text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Scheme,
    /// Emacs and Common Lisp: `t`, `nil` and their escapes of control characters.
    Lisp,
}

/// Writes `data` as one s-expression without a line feed.
///
/// # Errors
/// The error of a `Serialize` of its own, such as that of a path that is not UTF-8.
pub fn print(data: &impl Serialize, dialect: Dialect) -> Result<Vec<u8>> {
    let mut text = Text { out: Vec::with_capacity(256), dialect };
    data.serialize(Printer { text: &mut text, spot: Spot::Whole })?;
    Ok(text.out)
}

struct Text {
    out: Vec<u8>,
    dialect: Dialect,
}

impl Text {
    fn put(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    /// What stands within the quotes of a string.
    fn put_escaped(&mut self, text: &str) {
        let mut rest = text;
        while let Some(at) = rest.bytes().position(|byte| byte < b' ' || matches!(byte, b'"' | b'\\' | 0x7f)) {
            self.put(&rest[..at]);
            let letter = match rest.as_bytes()[at] {
                0x07 => b'a',
                0x08 => b'b',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                byte @ (b'"' | b'\\') => byte,
                byte => {
                    self.put(&match self.dialect {
                        Dialect::Scheme => format!("\\x{byte:02X};"),
                        Dialect::Lisp => format!("\\u00{byte:02X}"),
                    });
                    rest = &rest[at + 1..];
                    continue;
                }
            };
            self.out.extend([b'\\', letter]);
            rest = &rest[at + 1..];
        }
        self.put(rest);
    }

    fn put_number(&mut self, mut number: u64) {
        let mut digits = [0; 20];
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.out.extend_from_slice(&digits[first..]);
    }
}

/// The inside of a string that a `Display` writes.
struct Quoted<'a>(&'a mut Text);

impl Write for Quoted<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.put_escaped(text);
        Ok(())
    }
}

/// Where a value is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spot {
    /// By itself: as an element, or as the first part of a pair.
    Whole,
    /// After the first part of a pair, whose parentheses are written by others: a list goes on there, all else follows a dot.
    Tail,
}

struct Printer<'a> {
    text: &'a mut Text,
    spot: Spot,
}

impl<'a> Printer<'a> {
    /// Writes what is no list.
    fn atom(self, write: impl FnOnce(&mut Text)) -> Result<()> {
        if self.spot == Spot::Tail {
            self.text.put(" . ");
        }
        write(self.text);
        Ok(())
    }

    /// What the data of answers does not have, as `serde_lexpr` writes it.
    fn rare(self, value: &Value) -> Result<()> {
        let options = match self.text.dialect {
            Dialect::Scheme => Options::default(),
            Dialect::Lisp => Options::elisp(),
        };
        let bytes = to_vec_custom(value, options)?;
        self.atom(|text| text.out.extend(bytes))
    }

    fn list(self) -> List<'a> {
        if self.spot == Spot::Whole {
            self.text.put("(");
        }
        List { text: self.text, spot: self.spot, is_empty: self.spot == Spot::Whole, close: ")" }
    }

    fn vector(self) -> List<'a> {
        let (open, close) = match self.text.dialect {
            Dialect::Scheme => ("#(", ")"),
            Dialect::Lisp => ("[", "]"),
        };
        self.text.put(if self.spot == Spot::Tail { " . " } else { "" });
        self.text.put(open);
        List { text: self.text, spot: Spot::Whole, is_empty: true, close }
    }

    /// A list that begins with a symbol.
    fn tagged(self, tag: &str) -> Result<List<'a>> {
        let mut list = self.list();
        list.element(|printer| printer.atom(|text| text.put(tag)))?;
        Ok(list)
    }
}

/// A list or a vector that has been begun.
struct List<'a> {
    text: &'a mut Text,
    spot: Spot,
    is_empty: bool,
    close: &'static str,
}

impl List<'_> {
    fn element(&mut self, write: impl FnOnce(Printer<'_>) -> Result<()>) -> Result<()> {
        if !self.is_empty {
            self.text.put(" ");
        }
        self.is_empty = false;
        write(Printer { text: self.text, spot: Spot::Whole })
    }

    fn pair<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) -> Result<()> {
        self.element(|printer| {
            printer.text.put("(");
            printer.text.put(key);
            value.serialize(Printer { text: &mut *printer.text, spot: Spot::Tail })?;
            printer.text.put(")");
            Ok(())
        })
    }

    fn close(self) -> Result<()> {
        if self.spot == Spot::Whole {
            self.text.put(self.close);
        }
        Ok(())
    }
}

impl<'a> ser::Serializer for Printer<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = List<'a>;
    type SerializeTuple = List<'a>;
    type SerializeTupleStruct = List<'a>;
    type SerializeTupleVariant = List<'a>;
    type SerializeMap = List<'a>;
    type SerializeStruct = List<'a>;
    type SerializeStructVariant = List<'a>;

    fn serialize_bool(self, value: bool) -> Result<()> {
        let word = match (self.text.dialect, value) {
            (Dialect::Scheme, true) => "#t",
            (Dialect::Scheme, false) => "#f",
            (Dialect::Lisp, true) => "t",
            (Dialect::Lisp, false) => "nil",
        };
        self.atom(|text| text.put(word))
    }

    fn serialize_i8(self, value: i8) -> Result<()> {
        self.serialize_i64(value.into())
    }

    fn serialize_i16(self, value: i16) -> Result<()> {
        self.serialize_i64(value.into())
    }

    fn serialize_i32(self, value: i32) -> Result<()> {
        self.serialize_i64(value.into())
    }

    fn serialize_i64(self, value: i64) -> Result<()> {
        self.atom(|text| {
            text.put(if value < 0 { "-" } else { "" });
            text.put_number(value.unsigned_abs());
        })
    }

    fn serialize_u8(self, value: u8) -> Result<()> {
        self.serialize_u64(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<()> {
        self.serialize_u64(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<()> {
        self.serialize_u64(value.into())
    }

    fn serialize_u64(self, value: u64) -> Result<()> {
        self.atom(|text| text.put_number(value))
    }

    fn serialize_f32(self, value: f32) -> Result<()> {
        self.serialize_f64(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<()> {
        self.rare(&value.into())
    }

    fn serialize_char(self, value: char) -> Result<()> {
        self.rare(&Value::Char(value))
    }

    fn serialize_str(self, value: &str) -> Result<()> {
        self.atom(|text| {
            text.put("\"");
            text.put_escaped(value);
            text.put("\"");
        })
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<()> {
        self.rare(&Value::Bytes(value.into()))
    }

    fn serialize_none(self) -> Result<()> {
        self.list().close()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        let mut list = self.list();
        list.element(|printer| value.serialize(printer))?;
        list.close()
    }

    fn serialize_unit(self) -> Result<()> {
        self.list().close()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<()> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<()> {
        self.atom(|text| text.put(variant))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<()> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<()> {
        let list = self.tagged(variant)?;
        value.serialize(Printer { text: &mut *list.text, spot: Spot::Tail })?;
        list.close()
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<List<'a>> {
        Ok(self.list())
    }

    fn serialize_tuple(self, _: usize) -> Result<List<'a>> {
        Ok(self.vector())
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<List<'a>> {
        Ok(self.vector())
    }

    fn serialize_tuple_variant(self, _: &'static str, _: u32, variant: &'static str, _: usize) -> Result<List<'a>> {
        self.tagged(variant)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<List<'a>> {
        Ok(self.list())
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<List<'a>> {
        Ok(self.list())
    }

    fn serialize_struct_variant(self, _: &'static str, _: u32, variant: &'static str, _: usize) -> Result<List<'a>> {
        self.tagged(variant)
    }

    fn collect_str<T: fmt::Display + ?Sized>(self, value: &T) -> Result<()> {
        self.atom(|text| {
            text.put("\"");
            // Only a `Display` that fails by itself fails here, and `to_string` would panic on that.
            write!(Quoted(text), "{value}").expect("a Display does not fail");
            text.put("\"");
        })
    }
}

impl ser::SerializeSeq for List<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.element(|printer| value.serialize(printer))
    }

    fn end(self) -> Result<()> {
        self.close()
    }
}

impl ser::SerializeTuple for List<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.element(|printer| value.serialize(printer))
    }

    fn end(self) -> Result<()> {
        self.close()
    }
}

impl ser::SerializeTupleStruct for List<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.element(|printer| value.serialize(printer))
    }

    fn end(self) -> Result<()> {
        self.close()
    }
}

impl ser::SerializeTupleVariant for List<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.element(|printer| value.serialize(printer))
    }

    fn end(self) -> Result<()> {
        self.close()
    }
}

impl SerializeMap for List<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<()> {
        self.element(|printer| {
            printer.text.put("(");
            key.serialize(printer)
        })
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        value.serialize(Printer { text: &mut *self.text, spot: Spot::Tail })?;
        self.text.put(")");
        Ok(())
    }

    fn end(self) -> Result<()> {
        self.close()
    }
}

impl ser::SerializeStruct for List<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<()> {
        self.pair(name, value)
    }

    fn end(self) -> Result<()> {
        self.close()
    }
}

impl ser::SerializeStructVariant for List<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<()> {
        self.pair(name, value)
    }

    fn end(self) -> Result<()> {
        self.close()
    }
}

#[cfg(test)]
mod tests;
