//! docs/INTEROP.md has the rows that are run, and no other.

use crate::codecs::{CODECS, Codec};
use crate::common::{read, root};
use crate::peers::{PEERS, Peer, Tried};

const DOCUMENT: &str = "docs/INTEROP.md";

/// The cells of the table below this heading's first cell, row by row, and where its rows stand in the document.
fn table(document: &str, first: &str) -> (Vec<Vec<String>>, std::ops::Range<usize>) {
    let head = format!("| {first} |");
    let start = document.find(&head).unwrap_or_else(|| panic!("no table that begins with {head}"));
    // Behind the head and the line below it.
    let lines: usize = document[start..].lines().take(2).map(|line| line.len() + 1).sum();
    let rows: Vec<&str> =
        document[start + lines..].lines().take_while(|line| line.starts_with('|')).collect();
    let length = rows.iter().map(|row| row.len() + 1).sum::<usize>();
    let cells = |row: &&str| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    (rows.iter().map(cells).collect(), start + lines..start + lines + length)
}

fn cell(tried: Tried) -> &'static str {
    match tried {
        Tried::Works(_) | Tried::Elsewhere(..) => "yes",
        Tried::But(text, _) => text,
        Tried::No => "–",
    }
}

/// The cells of a peer's row, without its version.
fn peer(peer: &Peer) -> Vec<String> {
    let mut cells = vec![peer.name.to_owned()];
    cells.extend(peer.directions().map(cell).map(str::to_owned));
    cells.push(peer.seen.to_owned());
    cells
}

fn codec(codec: &Codec) -> Vec<String> {
    vec![codec.name.to_owned(), format!("`{}`", codec.encoder), codec.seen.to_owned()]
}

fn write(cells: &[Vec<String>]) -> String {
    cells.iter().map(|row| format!("| {} |\n", row.join(" | "))).collect()
}

/// Puts the rows into the document.
fn update(mut document: String) {
    let codecs: Vec<_> = CODECS.iter().map(codec).collect();
    document.replace_range(table(&document, "Codec").1, &write(&codecs));
    let peers: Vec<_> = PEERS
        .iter()
        .map(|of| {
            let mut cells = peer(of);
            cells.insert(1, format!("{}, {}", (of.version)(), of.source));
            cells
        })
        .collect();
    document.replace_range(table(&document, "Peer").1, &write(&peers));
    std::fs::write(root().join(DOCUMENT), document).unwrap();
}

#[test]
fn the_document_has_the_rows_that_are_run() {
    if std::env::var_os("UPDATE_INTEROP").is_some() {
        update(read(DOCUMENT));
    }
    let document = read(DOCUMENT);
    let mut peers = table(&document, "Peer").0;
    for (row, of) in peers.iter_mut().zip(PEERS) {
        let version = row.remove(1);
        let (number, source) = version.split_once(", ").expect("a version and where it is from");
        assert!(number.starts_with(|c: char| c.is_ascii_digit()), "{}: {number}", of.name);
        assert_eq!(source, of.source, "{}", of.name);
    }
    assert_eq!(peers, PEERS.iter().map(peer).collect::<Vec<_>>());
    assert_eq!(table(&document, "Codec").0, CODECS.iter().map(codec).collect::<Vec<_>>());
}

#[test]
fn what_is_tested_elsewhere_is() {
    for tried in PEERS.iter().flat_map(Peer::directions) {
        if let Tried::Elsewhere(file, test) = tried {
            assert!(read(file).contains(&format!("#[test]\nfn {test}()")), "no test {test} in {file}");
        }
    }
}
