//! Rows as text: for people at a terminal, for documents, for programs.

use super::check::{Check, Row, Verdict};
use serde_json::json;
use std::fmt::Write;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A table with a heading a group.
    Text,
    /// The same in colours.
    Colours,
    /// One JSON document.
    Json,
    /// A table for a document.
    Markdown,
}

/// Writes rows one after the other; what it returns is to be printed at once.
#[derive(Debug)]
pub struct Report {
    form: Form,
    name_width: usize,
    expected_width: usize,
    group: Option<&'static str>,
    rows: Vec<Row>,
}

impl Report {
    /// A report on these checks, whose names and expectations decide how wide its columns are.
    pub fn new(form: Form, checks: &[Check]) -> Report {
        let width = |text: fn(&Check) -> String| {
            checks.iter().map(|check| text(check).chars().count()).max().unwrap_or(0)
        };
        Report {
            form,
            name_width: width(|check| check.name.to_owned()),
            expected_width: width(expected),
            group: None,
            rows: Vec::new(),
        }
    }

    /// One more row.
    pub fn row(&mut self, row: Row) -> String {
        let mut text = String::new();
        let group = row.check.group.name();
        let new_group = self.group.replace(group) != Some(group);
        // Writing to a string does not fail.
        let _written = match self.form {
            Form::Json => Ok(()),
            Form::Markdown => self.markdown_row(&mut text, &row),
            Form::Text | Form::Colours => {
                if new_group {
                    let _written = writeln!(text, "\n{}", self.bold(&group.to_uppercase()));
                }
                self.text_row(&mut text, &row)
            }
        };
        self.rows.push(row);
        text
    }

    fn text_row(&self, text: &mut String, row: &Row) -> std::fmt::Result {
        let verdict = format!("{:7}", row.seen.verdict.name());
        let (verdict, name) = (self.coloured(row.seen.verdict, &verdict), row.check.name);
        let (names, expecteds) = (self.name_width, self.expected_width);
        writeln!(text, "  {verdict}  {name:names$}  {:expecteds$}  {}", expected(&row.check), row.seen.text)
    }

    fn markdown_row(&self, text: &mut String, row: &Row) -> std::fmt::Result {
        if self.rows.is_empty() {
            writeln!(text, "| check | expected | by | verdict | seen |\n|---|---|---|---|---|")?;
        }
        let Check { expected, source, .. } = row.check;
        let seen = row.seen.text.replace('|', "\\|");
        let verdict = match row.seen.verdict {
            Verdict::Fail => "**fail**",
            other => other.name(),
        };
        writeln!(text, "| `{}` | {expected} | {source} | {verdict} | {seen} |", row.check.id())
    }

    /// What stands below the rows.
    pub fn end(&self) -> String {
        match self.form {
            Form::Json => {
                let rows: Vec<_> = self.rows.iter().map(as_json).collect();
                let document = json!({
                    "checks": rows,
                    "passed": self.count(Verdict::Pass),
                    "failed": self.count(Verdict::Fail),
                    "info": self.count(Verdict::Info),
                    "skipped": self.count(Verdict::Skipped),
                });
                format!("{document:#}\n")
            }
            Form::Markdown => format!("\n{}\n", self.summary()),
            Form::Text | Form::Colours => format!("\n{}\n", self.bold(&self.summary())),
        }
    }

    /// Rows with this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|row| row.seen.verdict == verdict).count()
    }

    /// All in one line.
    fn summary(&self) -> String {
        let count = |verdict, word: &str| match self.count(verdict) {
            0 => String::new(),
            count => format!(", {count} {word}"),
        };
        format!(
            "{} checks: {} passed{}{}{}",
            self.rows.len(),
            self.count(Verdict::Pass),
            count(Verdict::Fail, "failed"),
            count(Verdict::Info, "info"),
            count(Verdict::Skipped, "skipped"),
        )
    }

    fn bold(&self, text: &str) -> String {
        match self.form {
            Form::Colours => format!("\x1b[1m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }

    fn coloured(&self, verdict: Verdict, text: &str) -> String {
        let colour = match verdict {
            Verdict::Pass => 32,
            Verdict::Fail => 31,
            Verdict::Info => 36,
            Verdict::Skipped => 33,
        };
        match self.form {
            Form::Colours => format!("\x1b[{colour}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

/// What is expected, and who says so.
fn expected(check: &Check) -> String {
    format!("{} ({})", check.expected, check.source)
}

fn as_json(row: &Row) -> serde_json::Value {
    let Check { name, group, expected, source, .. } = row.check;
    json!({
        "group": group.name(),
        "name": name,
        "expected": expected,
        "source": source,
        "verdict": row.seen.verdict.name(),
        "seen": row.seen.text,
        "milliseconds": u64::try_from(row.took.as_millis()).unwrap_or(u64::MAX),
    })
}
