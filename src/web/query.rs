//! What several calls read from their query: which page of a list, and why a peer is sent away.

use super::request::{Failure, decoded};
use crate::api::LIST_MAX;
use crate::ids::StreamName;
use std::borrow::Cow;
use std::fmt::Display;
use std::str::FromStr;

/// The longest reason for which a peer is sent away, bytes.
const REASON_MAX: usize = 200;

/// One page of a list that is ordered by a key.
#[derive(Debug)]
pub(super) struct Page<T> {
    /// The key that the page begins after; missing: with the first one.
    pub after: Option<T>,
    /// How many entries it has at most.
    pub limit: usize,
}

impl<T: FromStr<Err: Display> + Ord + Clone> Page<T> {
    /// From `after` and `limit`.
    pub fn read(query: &str) -> Result<Self, Failure> {
        let mut page = Page { after: name(query, "after")?, limit: LIST_MAX };
        if let Some(limit) = value(query, "limit") {
            let limit = limit.parse().ok().filter(|limit| (1..=LIST_MAX).contains(limit));
            page.limit =
                limit.ok_or_else(|| Failure::bad(format!("limit is a number from 1 to {LIST_MAX}")))?;
        }
        Ok(page)
    }

    /// The entries of this page, and the value of `after` that leads to the next one. Whoever has a list that begins behind `after` need
    /// not bring more of it than `limit` and one.
    pub fn of<E>(&self, list: Vec<E>, key: impl Fn(&E) -> &T) -> (Vec<E>, Option<T>) {
        let later = |entry: &E| self.after.as_ref().is_none_or(|after| key(entry) > after);
        let mut rest = list.into_iter().filter(later);
        let page: Vec<E> = rest.by_ref().take(self.limit).collect();
        let next = rest.next().and_then(|_| page.last()).map(|last| key(last).clone());
        (page, next)
    }
}

/// From `stream`: only what is about this one.
pub(super) fn stream(query: &str) -> Result<Option<StreamName>, Failure> {
    name(query, "stream")
}

/// A name, which may hold a plus sign and no space: here `+` stands for itself, as it does in a path.
fn name<T: FromStr<Err: Display>>(query: &str, wanted: &str) -> Result<Option<T>, Failure> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let Some((_, written)) = pairs.into_iter().find(|(key, _)| *key == wanted) else { return Ok(None) };
    let bad = |why: &dyn Display| Failure::bad(format!("{wanted}: {why}"));
    let name = decoded(written).ok_or_else(|| bad(&"it is not percent-encoded as it should"))?;
    name.parse().map(Some).map_err(|error: T::Err| bad(&error))
}

fn value<'a>(query: &'a str, wanted: &str) -> Option<Cow<'a, str>> {
    url::form_urlencoded::parse(query.as_bytes()).find_map(|(key, value)| (key == wanted).then_some(value))
}

/// From `reason`: why a peer is sent away.
pub(super) fn reason(query: &str) -> Result<String, Failure> {
    match value(query, "reason") {
        None => Ok("sent away by an operator".to_owned()),
        Some(reason) if reason.len() <= REASON_MAX => Ok(reason.into_owned()),
        Some(_) => Err(Failure::bad(format!("a reason has at most {REASON_MAX} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_page_by_page() {
        let list = || (1..=5_u64).collect::<Vec<_>>();
        let page = |query: &str| Page::<u64>::read(query).unwrap().of(list(), |number| number);
        assert_eq!(page(""), (list(), None));
        assert_eq!(page("limit=2"), (vec![1, 2], Some(2)));
        assert_eq!(page("limit=2&after=2"), (vec![3, 4], Some(4)));
        assert_eq!(page("after=4&limit=2&other=x"), (vec![5], None));
        assert_eq!(page("after=9"), (vec![], None));
        for bad in ["limit=0", "limit=1001", "limit=x", "after=x"] {
            assert!(Page::<u64>::read(bad).is_err(), "{bad}");
        }
        for (query, name) in
            [("stream=team/x", "team/x"), ("stream=a+b", "a+b"), ("stream=a%2Bb%3d%25", "a+b=%")]
        {
            assert_eq!(stream(query).unwrap().unwrap().as_str(), name);
        }
        assert!(stream("stream=%").is_err());
        assert!(stream("").unwrap().is_none() && stream("stream=a%20b").is_err());
    }

    #[test]
    fn a_reason_is_a_short_text() {
        assert_eq!(reason("").unwrap(), "sent away by an operator");
        assert_eq!(reason("a=b&reason=wrong%20camera").unwrap(), "wrong camera");
        assert!(reason(&format!("reason={}", "x".repeat(REASON_MAX + 1))).is_err());
    }
}
