//! How words stand in the text of a workflow definition, between a reactor that writes it and a node that reads it.
//!
//! The grammar of `mmids-core` has few characters that a word may hold. Any other is written as `\` and six hexadecimal
//! digits, which that grammar takes for a part of the word, and which an lb node takes back out of each word after the
//! text was read. So whatever a word holds, it ends nothing and begins nothing. A plain mmids node leaves an escape as it stands.

use std::fmt::Write;

/// The digits of an escape.
const DIGITS: usize = 6;

/// Whether a character can stand in a word as it is.
pub fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '*' | '.' | ':' | ',')
}

/// Whether a word needs no escape, so that plain mmids nodes can read it too.
pub fn is_plain_word(word: &str) -> bool {
    word.chars().all(is_plain)
}

/// Writes a word, with escapes for what cannot stand in it.
pub fn write(word: &str, out: &mut String) {
    for c in word.chars() {
        write_char(c, out);
    }
}

/// Writes a character of a word.
pub fn write_char(c: char, out: &mut String) {
    match is_plain(c) {
        true => out.push(c),
        // Writing to a string cannot fail.
        false => write!(out, "\\{:0DIGITS$x}", u32::from(c)).unwrap_or_default(),
    }
}

/// The escape at the beginning of a text: what it stands for, and what follows it. Control characters have none, as they could
/// be taken for the end of a line somewhere.
pub fn escape(text: &str) -> Option<(char, &str)> {
    let rest = text.strip_prefix('\\')?;
    let (digits, after) = rest.split_at_checked(DIGITS)?;
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let c = u32::from_str_radix(digits, 16).ok().filter(|_| is_hex).and_then(char::from_u32)?;
    (!c.is_control()).then_some((c, after))
}

/// Takes the escapes out of a word.
pub fn read(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    let mut rest = word;
    while let Some((before, _)) = rest.split_once('\\') {
        out.push_str(before);
        let at = rest.get(before.len()..).unwrap_or_default();
        rest = match escape(at) {
            Some((c, after)) => {
                out.push(c);
                after
            }
            None => {
                out.push('\\');
                at.get(1..).unwrap_or_default()
            }
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_grammar_lacks_is_written_as_escapes() {
        let written = |word: &str| {
            let mut out = String::new();
            write(word, &mut out);
            out
        };
        assert_eq!(written("a/b-c_d.e:f,0*"), "a/b-c_d.e:f,0*");
        assert_eq!(written("a=b"), "a\\00003db");
        assert_eq!(read("a\\00003db\\"), "a=b\\");
        for none in ["\\00000a", "\\00003", "\\+0003d", "\\d80000", "\\zzzzzz", "\\"] {
            assert_eq!(read(none), none, "no escape, or one for a line's end");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_one_word_and_is_read_again(word in "[^\\p{Cc}]{0,40}") {
            let mut out = String::new();
            write(&word, &mut out);
            prop_assert!(out.chars().all(|c| c == '\\' || is_plain(c)), "{out}");
            prop_assert_eq!(read(&out), word);
        }
    }
}
