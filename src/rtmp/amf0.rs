//! AMF 0, the values in commands and data messages.
//!
//! Reading is bounded in depth and count, so that no body can overflow the stack or blow up memory; the lengths and counts
//! that a body claims are never trusted for an allocation. Text that is not UTF-8 is read with replacement characters.

use super::Error;
use bytes::BufMut;

const NUMBER: u8 = 0x00;
const BOOLEAN: u8 = 0x01;
const STRING: u8 = 0x02;
const OBJECT: u8 = 0x03;
const NULL: u8 = 0x05;
const UNDEFINED: u8 = 0x06;
const REFERENCE: u8 = 0x07;
const ECMA_ARRAY: u8 = 0x08;
const OBJECT_END: u8 = 0x09;
const STRICT_ARRAY: u8 = 0x0A;
const DATE: u8 = 0x0B;
const LONG_STRING: u8 = 0x0C;
const UNSUPPORTED: u8 = 0x0D;
const XML_DOCUMENT: u8 = 0x0F;
const TYPED_OBJECT: u8 = 0x10;

/// Levels of objects and arrays that are read by default. Real metadata has three.
pub const DEPTH: usize = 32;

/// Values in one message that are read by default, counting every property and element. A connect with its codec lists
/// has about 50.
pub const VALUES: usize = 8192;

/// How much of a body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Levels of objects and arrays; see [`DEPTH`]. Reading recurses, so this also bounds the stack: keep it below 256.
    pub depth: usize,
    /// Values in one message; see [`VALUES`].
    pub values: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { depth: DEPTH, values: VALUES }
    }
}

/// Names and values in the order of the wire. Names may repeat; see [`Value::get`].
pub type Properties = Vec<(String, Value)>;

/// One AMF 0 value. Properties keep their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number (§2.2).
    Number(f64),
    /// A boolean (§2.3).
    Boolean(bool),
    /// Text (§2.4); written as a long string if it is longer than 65,535 bytes.
    String(String),
    /// An anonymous object (§2.5).
    Object(Properties),
    /// Null (§2.7).
    Null,
    /// Undefined (§2.8).
    Undefined,
    /// A reference to an earlier object, by index (§2.9); it is not followed.
    Reference(u16),
    /// An associative array (§2.10). Its claimed count is not kept: many encoders send a wrong one.
    EcmaArray(Properties),
    /// A plain array (§2.12).
    StrictArray(Vec<Value>),
    /// A point in time (§2.13).
    Date {
        /// Milliseconds since 1970-01-01 UTC.
        millis: f64,
        /// The time zone, which the specification wants to be 0.
        time_zone: i16,
    },
    /// Text sent with a 32-bit length (§2.14).
    LongString(String),
    /// A value that the sender could not express (§2.15).
    Unsupported,
    /// An XML document as text (§2.17).
    XmlDocument(String),
    /// An object with a class name (§2.18).
    TypedObject {
        /// The class.
        class: String,
        /// Its properties.
        properties: Properties,
    },
}

impl Value {
    /// A string value.
    pub fn string(text: impl Into<String>) -> Value {
        Value::String(text.into())
    }

    /// An object from names and values.
    pub fn object<const N: usize>(properties: [(&str, Value); N]) -> Value {
        Value::Object(properties.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// The text of a string, long or not.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) | Value::LongString(text) => Some(text),
            _ => None,
        }
    }

    /// The number.
    pub fn as_number(&self) -> Option<f64> {
        match self {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The boolean; a number counts as true unless it is zero, as some senders write one for the other.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Boolean(flag) => Some(*flag),
            Value::Number(number) => Some(*number != 0.0),
            _ => None,
        }
    }

    /// The properties of an object or associative array.
    pub fn properties(&self) -> Option<&[(String, Value)]> {
        match self {
            Value::Object(properties)
            | Value::EcmaArray(properties)
            | Value::TypedObject { properties, .. } => Some(properties),
            _ => None,
        }
    }

    /// The first property of that name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.properties()?.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

/// Reads all values of a body.
pub fn read_all(body: &[u8], limits: &Limits) -> Result<Vec<Value>, Error> {
    Reader::new(body, limits).collect()
}

/// Reads the values of a body one by one. After an error it gives `None`.
pub struct Reader<'a> {
    body: &'a [u8],
    offset: usize,
    depth: usize,
    values: usize,
    limits: Limits,
}

impl<'a> Reader<'a> {
    /// A reader at the body's start.
    pub fn new(body: &'a [u8], limits: &Limits) -> Self {
        Reader { body, offset: 0, depth: 0, values: 0, limits: *limits }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let rest = self.body.get(self.offset..).unwrap_or_default();
        let taken = rest.get(..count).ok_or(Error::AmfTruncated { offset: self.offset })?;
        self.offset += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn text(&mut self, length: usize) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    fn short_text(&mut self) -> Result<String, Error> {
        let length = u16::from_be_bytes(self.array()?);
        self.text(length.into())
    }

    fn long_text(&mut self) -> Result<String, Error> {
        let length = u32::from_be_bytes(self.array()?);
        self.text(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn value(&mut self) -> Result<Value, Error> {
        let offset = self.offset;
        self.values += 1;
        if self.values > self.limits.values {
            return Err(Error::AmfValues { offset, max: self.limits.values });
        }
        let [marker] = self.array()?;
        Ok(match marker {
            NUMBER => Value::Number(f64::from_be_bytes(self.array()?)),
            BOOLEAN => Value::Boolean(self.array::<1>()? != [0]),
            STRING => Value::String(self.short_text()?),
            OBJECT => Value::Object(self.nested(Self::pairs)?),
            NULL => Value::Null,
            UNDEFINED => Value::Undefined,
            REFERENCE => Value::Reference(u16::from_be_bytes(self.array()?)),
            ECMA_ARRAY => {
                self.take(4)?;
                Value::EcmaArray(self.nested(Self::pairs)?)
            }
            STRICT_ARRAY => {
                let count = u32::from_be_bytes(self.array()?);
                Value::StrictArray(self.nested(|reader| (0..count).map(|_| reader.value()).collect())?)
            }
            DATE => Value::Date {
                millis: f64::from_be_bytes(self.array()?),
                time_zone: i16::from_be_bytes(self.array()?),
            },
            LONG_STRING => Value::LongString(self.long_text()?),
            UNSUPPORTED => Value::Unsupported,
            XML_DOCUMENT => Value::XmlDocument(self.long_text()?),
            TYPED_OBJECT => {
                let class = self.short_text()?;
                Value::TypedObject { class, properties: self.nested(Self::pairs)? }
            }
            _ => return Err(Error::AmfMarker { marker, offset }),
        })
    }

    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.depth >= self.limits.depth {
            return Err(Error::AmfDepth { offset: self.offset, max: self.limits.depth });
        }
        self.depth += 1;
        let result = read(self)?;
        self.depth -= 1;
        Ok(result)
    }

    fn pairs(&mut self) -> Result<Properties, Error> {
        let mut pairs = Vec::new();
        loop {
            let name = self.short_text()?;
            if name.is_empty() && self.body.get(self.offset) == Some(&OBJECT_END) {
                self.offset += 1;
                return Ok(pairs);
            }
            pairs.push((name, self.value()?));
        }
    }
}

impl Iterator for Reader<'_> {
    type Item = Result<Value, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.body.len() {
            return None;
        }
        let value = self.value();
        if value.is_err() {
            self.offset = self.body.len();
        }
        Some(value)
    }
}

/// Writes one value. Property names longer than 65,535 bytes are cut, as the format has no room for them.
pub fn write(out: &mut impl BufMut, value: &Value) {
    match value {
        Value::Number(number) => {
            out.put_u8(NUMBER);
            out.put_f64(*number);
        }
        Value::Boolean(flag) => {
            out.put_u8(BOOLEAN);
            out.put_u8((*flag).into());
        }
        Value::String(text) if text.len() <= u16::MAX.into() => {
            out.put_u8(STRING);
            put_short_text(out, text);
        }
        Value::String(text) | Value::LongString(text) => {
            out.put_u8(LONG_STRING);
            put_long_text(out, text);
        }
        Value::Object(properties) => {
            out.put_u8(OBJECT);
            put_pairs(out, properties);
        }
        Value::Null => out.put_u8(NULL),
        Value::Undefined => out.put_u8(UNDEFINED),
        Value::Reference(index) => {
            out.put_u8(REFERENCE);
            out.put_u16(*index);
        }
        Value::EcmaArray(properties) => {
            out.put_u8(ECMA_ARRAY);
            out.put_u32(u32::try_from(properties.len()).unwrap_or(u32::MAX));
            put_pairs(out, properties);
        }
        Value::StrictArray(values) => {
            out.put_u8(STRICT_ARRAY);
            out.put_u32(u32::try_from(values.len()).unwrap_or(u32::MAX));
            values.iter().for_each(|value| write(out, value));
        }
        Value::Date { millis, time_zone } => {
            out.put_u8(DATE);
            out.put_f64(*millis);
            out.put_i16(*time_zone);
        }
        Value::Unsupported => out.put_u8(UNSUPPORTED),
        Value::XmlDocument(text) => {
            out.put_u8(XML_DOCUMENT);
            put_long_text(out, text);
        }
        Value::TypedObject { class, properties } => {
            out.put_u8(TYPED_OBJECT);
            put_short_text(out, class);
            put_pairs(out, properties);
        }
    }
}

fn put_short_text(out: &mut impl BufMut, text: &str) {
    let text = text.as_bytes();
    let text = text.get(..u16::MAX.into()).unwrap_or(text);
    out.put_u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
    out.put_slice(text);
}

fn put_long_text(out: &mut impl BufMut, text: &str) {
    out.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    out.put_slice(text.as_bytes());
}

fn put_pairs(out: &mut impl BufMut, properties: &[(String, Value)]) {
    for (name, value) in properties {
        put_short_text(out, name);
        write(out, value);
    }
    out.put_slice(&[0, 0, OBJECT_END]);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(body: &[u8]) -> Result<Vec<Value>, Error> {
        read_all(body, &Limits::default())
    }

    /// Any value that reads back as it was written.
    pub(crate) fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            (-1e12..1e12f64).prop_map(Value::Number),
            any::<bool>().prop_map(Value::Boolean),
            ".{0,12}".prop_map(Value::String),
            ".{0,12}".prop_map(Value::LongString),
            ".{0,12}".prop_map(Value::XmlDocument),
            Just(Value::Null),
            Just(Value::Undefined),
            Just(Value::Unsupported),
            any::<u16>().prop_map(Value::Reference),
            (-1e15..1e15f64, any::<i16>()).prop_map(|(millis, time_zone)| Value::Date { millis, time_zone }),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            let pairs = || prop::collection::vec(("[a-zA-Z]{0,6}", inner.clone()), 0..6);
            prop_oneof![
                pairs().prop_map(Value::Object),
                pairs().prop_map(Value::EcmaArray),
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::StrictArray),
                ("[a-z.]{0,6}", pairs())
                    .prop_map(|(class, properties)| Value::TypedObject { class, properties }),
            ]
        })
    }

    proptest! {
        #[test]
        fn values_round_trip_and_every_cut_is_an_error_or_fewer_values(
            values in prop::collection::vec(any_value(), 0..4)
        ) {
            let mut body = Vec::new();
            values.iter().for_each(|value| write(&mut body, value));
            prop_assert_eq!(read(&body).unwrap(), values.clone());
            for cut in 0..body.len() {
                if let Ok(fewer) = read(&body[..cut]) {
                    prop_assert_eq!(&fewer[..], &values[..fewer.len()]);
                    prop_assert!(fewer.len() < values.len());
                }
            }
        }
    }

    #[test]
    fn nesting_100_000_deep_is_refused_without_overflow() {
        let mut objects = Vec::new();
        for _ in 0..100_000 {
            objects.extend_from_slice(&[OBJECT, 0, 1, b'a']);
        }
        let arrays: Vec<u8> = [STRICT_ARRAY, 0, 0, 0, 1].repeat(100_000);
        let ecma: Vec<u8> = [ECMA_ARRAY, 0, 0, 0, 1, 0, 1, b'a'].repeat(100_000);
        let typed: Vec<u8> = [TYPED_OBJECT, 0, 1, b'c', 0, 1, b'a'].repeat(100_000);
        for body in [objects, arrays, ecma, typed] {
            assert!(matches!(read(&body), Err(Error::AmfDepth { max: DEPTH, .. })));
        }
    }

    #[test]
    fn depth_is_counted_by_level_and_not_by_object() {
        let limits = Limits { depth: 2, values: 100 };
        let flat = Value::StrictArray(vec![Value::Object(vec![]); 10]);
        let deep = Value::StrictArray(vec![Value::StrictArray(vec![Value::StrictArray(vec![])])]);
        for (value, fits) in [(flat, true), (deep, false)] {
            let mut body = Vec::new();
            write(&mut body, &value);
            assert_eq!(read_all(&body, &limits).is_ok(), fits);
        }
    }

    #[test]
    fn a_claimed_count_of_four_billion_costs_nothing() {
        assert_eq!(read(&[STRICT_ARRAY, 0xFF, 0xFF, 0xFF, 0xFF]), Err(Error::AmfTruncated { offset: 5 }));
        let mut nulls = vec![STRICT_ARRAY, 0xFF, 0xFF, 0xFF, 0xFF];
        nulls.resize(1 << 20, NULL);
        assert!(matches!(read(&nulls), Err(Error::AmfValues { max: VALUES, .. })));
    }

    #[test]
    fn an_ecma_array_may_lie_about_its_count() {
        for count in [0, 1, 200, u8::MAX] {
            let body =
                [&[ECMA_ARRAY, 0, 0, 0, count, 0, 1, b'a', NULL, 0, 1, b'b', NULL, 0, 0, OBJECT_END][..]]
                    .concat();
            let pairs = vec![("a".to_owned(), Value::Null), ("b".to_owned(), Value::Null)];
            assert_eq!(read(&body), Ok(vec![Value::EcmaArray(pairs)]));
        }
    }

    #[test]
    fn an_error_names_its_place() {
        assert_eq!(read(&[NULL, NULL, 0x11, 1]), Err(Error::AmfMarker { marker: 0x11, offset: 2 }));
        assert_eq!(read(&[STRING, 0, 5, b'a']), Err(Error::AmfTruncated { offset: 3 }));
    }

    #[test]
    fn long_text_is_written_in_the_long_form() {
        let text = "x".repeat(70_000);
        let mut body = Vec::new();
        write(&mut body, &Value::string(text.clone()));
        assert_eq!(read(&body), Ok(vec![Value::LongString(text)]));
    }
}
