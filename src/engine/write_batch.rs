//! `WriteBatch`: records that are recovered whole or not at all; one frame of the log.
//!
//! ```text
//! encoded   count varint │ count × ( key: varint length ++ bytes │ record: varint length ++ bytes )
//! ```
//!
//! A record's bytes are those of `types::record`.

use bytes::{BufMut, Bytes};

use crate::types::{Key, Record, Timestamp, Value};
use crate::util::coding::{DecodeError, Reader, put_bytes, put_varint};

/// Records to be written together. They become durable together; readers may see part of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteBatch {
    items: Vec<(Key, Record)>,
}

impl WriteBatch {
    /// A batch of one record.
    pub fn one(key: Key, record: Record) -> Self {
        Self { items: vec![(key, record)] }
    }

    /// Adds a value.
    pub fn put(&mut self, key: Key, value: Value, timestamp: Timestamp) {
        self.push(key, Record::value(timestamp, value));
    }

    /// Adds a tombstone.
    pub fn delete(&mut self, key: Key, timestamp: Timestamp) {
        self.push(key, Record::tombstone(timestamp));
    }

    /// Adds a record.
    pub fn push(&mut self, key: Key, record: Record) {
        self.items.push((key, record));
    }

    /// The records, in the order they were added.
    pub fn items(&self) -> &[(Key, Record)] {
        &self.items
    }

    /// Whether it holds tombstones alone.
    pub fn is_deletes(&self) -> bool {
        self.items.iter().all(|(_, record)| record.is_tombstone())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The most bytes that [`WriteBatch::encode`] appends: what the batch weighs while it waits.
    pub fn weight(&self) -> usize {
        const LENGTHS: usize = 10; // two varints of up to five bytes
        let items =
            self.items.iter().map(|(key, record)| key.as_bytes().len() + record.encoded_len() + LENGTHS);
        LENGTHS + items.sum::<usize>()
    }

    /// Appends the batch.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_varint(out, self.items.len() as u64);
        for (key, record) in &self.items {
            put_bytes(out, key.as_bytes());
            put_varint(out, record.encoded_len() as u64);
            record.encode(out);
        }
    }

    /// Reads a batch that fills `bytes`; keys and values share them.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        const ITEM_LEN_MIN: usize = 1 + 1 + 1 + 9; // lengths, a key's one byte, a tombstone
        let mut reader = Reader::new(bytes);
        let count = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
        if count > reader.rest().len() / ITEM_LEN_MIN {
            return Err(DecodeError("as many records as there are bytes for"));
        }
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            let key = Key::internal(bytes.slice_ref(reader.bytes()?)).map_err(|_| DecodeError("a key"))?;
            items.push((key, Record::decode(&bytes.slice_ref(reader.bytes()?))?));
        }
        reader.finish()?;
        Ok(Self { items })
    }
}

impl From<Vec<(Key, Record)>> for WriteBatch {
    fn from(items: Vec<(Key, Record)>) -> Self {
        Self { items }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_batch() -> impl Strategy<Value = WriteBatch> {
        let item = (
            proptest::collection::vec(any::<u8>(), 1..20),
            any::<u64>(),
            proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
        );
        proptest::collection::vec(item, 0..8).prop_map(|items| {
            let mut batch = WriteBatch::default();
            for (key, timestamp, value) in items {
                let (key, timestamp) = (Key::new(key).unwrap(), Timestamp::from_u64(timestamp));
                match value {
                    Some(value) => batch.put(key, Value::new(value), timestamp),
                    None => batch.delete(key, timestamp),
                }
            }
            batch
        })
    }

    proptest! {
        #[test]
        fn a_batch_decodes_as_encoded_and_weighs_no_less(batch in any_batch()) {
            let mut out = Vec::new();
            batch.encode(&mut out);
            prop_assert!(out.len() <= batch.weight());
            prop_assert_eq!(WriteBatch::decode(&Bytes::from(out)), Ok(batch));
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes: Vec<u8>) {
            let _ = WriteBatch::decode(&Bytes::from(bytes));
        }
    }

    #[test]
    fn a_count_beyond_the_bytes_is_refused_before_room_is_made() {
        let bytes = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        assert!(WriteBatch::decode(&bytes).is_err());
    }
}
