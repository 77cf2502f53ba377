//! What several calls read from their query: which page of a list, and why a peer is sent away.

use super::request::Failure;
use crate::api::LIST_MAX;
use crate::ids::StreamName;
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
    /// Only what is about this stream, where the list is of such things.
    pub stream: Option<StreamName>,
}

impl<T: FromStr<Err: Display> + Ord + Clone> Page<T> {
    /// From `after`, `limit` and `stream`.
    pub fn read(query: &str) -> Result<Self, Failure> {
        let mut page = Page { after: None, limit: LIST_MAX, stream: None };
        let wrong = |key: &str, error: &dyn Display| Failure::bad(format!("{key}: {error}"));
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "after" => page.after = Some(value.parse().map_err(|error| wrong("after", &error))?),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=LIST_MAX).contains(limit));
                    page.limit = limit
                        .ok_or_else(|| Failure::bad(format!("limit is a number from 1 to {LIST_MAX}")))?;
                }
                "stream" => page.stream = Some(value.parse().map_err(|error| wrong("stream", &error))?),
                _ => {}
            }
        }
        Ok(page)
    }

    /// The entries of this page, and the value of `after` that leads to the next one.
    pub fn of<E>(&self, list: Vec<E>, key: impl Fn(&E) -> &T) -> (Vec<E>, Option<T>) {
        let later = |entry: &E| self.after.as_ref().is_none_or(|after| key(entry) > after);
        let mut rest = list.into_iter().filter(later);
        let page: Vec<E> = rest.by_ref().take(self.limit).collect();
        let next = rest.next().and_then(|_| page.last()).map(|last| key(last).clone());
        (page, next)
    }
}

/// From `reason`: why a peer is sent away.
pub(super) fn reason(query: &str) -> Result<String, Failure> {
    let given = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "reason");
    match given {
        None => Ok("sent away by an operator".to_owned()),
        Some((_, reason)) if reason.len() <= REASON_MAX => Ok(reason.into_owned()),
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
        assert_eq!(Page::<u64>::read("stream=team/x").unwrap().stream.unwrap().as_str(), "team/x");
        for bad in ["limit=0", "limit=1001", "limit=x", "after=x", "stream=a%20b"] {
            assert!(Page::<u64>::read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_reason_is_a_short_text() {
        assert_eq!(reason("").unwrap(), "sent away by an operator");
        assert_eq!(reason("a=b&reason=wrong%20camera").unwrap(), "wrong camera");
        assert!(reason(&format!("reason={}", "x".repeat(REASON_MAX + 1))).is_err());
    }
}
