//! The oracle: what was acknowledged must have arrived, bit for bit.
//!
//! An `ExportLogsServiceRequest` is one repeated field, and batching is concatenation of bytes. So
//! a message arrived bit for bit if its field-1 entries, with their exact bytes, stand next to each
//! other in a request that the destination accepted.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use bytes::Bytes;

use super::{holds_within, sink::Sink};

/// How often each message arrived, in the order of `messages`.
#[track_caller]
pub(crate) fn arrivals(messages: &[Bytes], stored: &[Bytes]) -> Vec<usize> {
    let stored: Vec<Vec<&[u8]>> = stored.iter().map(|request| entries(request)).collect();
    let mut places: HashMap<&[u8], Vec<(usize, usize)>> = HashMap::new();
    for (request, entries) in stored.iter().enumerate() {
        for (index, entry) in entries.iter().enumerate() {
            places.entry(entry).or_default().push((request, index));
        }
    }
    messages
        .iter()
        .map(|message| {
            let wanted = entries(message);
            let first = *wanted.first().expect("a message with at least one entry");
            let found = places.get(first).map_or(&[][..], Vec::as_slice);
            found
                .iter()
                .filter(|&&(request, index)| stored[request][index..].starts_with(&wanted))
                .count()
        })
        .collect()
}

/// Waits until every message has arrived at least once; gives the number of arrivals beyond that.
#[track_caller]
pub(crate) fn await_arrival(messages: &[Bytes], sink: &Sink, within: Duration) -> usize {
    assert!(
        !messages.is_empty(),
        "nothing was acknowledged: the test tested nothing"
    );
    let mut counts = vec![0; messages.len()];
    let mut stored = 0;
    let all_arrived = holds_within(within, || {
        // Comparing is dear; do it only when something came.
        if sink.stored_count() != stored {
            let requests = sink.stored();
            stored = requests.len();
            counts = arrivals(messages, &requests);
        }
        counts.iter().all(|&count| count > 0)
    });
    let missing: Vec<usize> = (0..counts.len()).filter(|&m| counts[m] == 0).collect();
    assert!(
        all_arrived,
        "{} of {} acknowledged messages didn't arrive bit for bit within {within:?} (numbers \
         {:?}…); the destination accepted {stored} requests and saw {}",
        missing.len(),
        messages.len(),
        &missing[..missing.len().min(10)],
        sink.seen(),
    );
    counts.iter().map(|count| count - 1).sum()
}

/// Nothing has arrived that wasn't sent, bit for bit.
#[track_caller]
pub(crate) fn assert_none_invented<'m>(
    sent: impl IntoIterator<Item = &'m Bytes>,
    stored: &[Bytes],
) {
    let sent: HashSet<&[u8]> = sent.into_iter().flat_map(|sent| entries(sent)).collect();
    for entry in stored.iter().flat_map(|request| entries(request)) {
        assert!(
            sent.contains(entry),
            "nobody has sent these {} bytes: {entry:?}",
            entry.len()
        );
    }
}

/// The field-1 entries of a message, tags and lengths included.
#[track_caller]
fn entries(message: &[u8]) -> Vec<&[u8]> {
    let mut entries = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        assert_eq!(rest[0], 0x0a, "a request holds field 1 and nothing else");
        let (length, digits) = varint(&rest[1..]);
        let (entry, after) = rest.split_at(1 + digits + length);
        entries.push(entry);
        rest = after;
    }
    entries
}

fn varint(bytes: &[u8]) -> (usize, usize) {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return (value, index + 1);
        }
    }
    panic!(
        "a length that isn't a varint: {:?}",
        &bytes[..10.min(bytes.len())]
    );
}
