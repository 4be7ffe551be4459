//! Every record by itself: its seal, its key, its fields.

use peersync::store::format::RecordError;
use peersync::store::format::keys;
use peersync::store::format::layout::Stream;
use peersync::store::format::records::{
    BlobRecord, ChainRecord, ContentRecord, ImageRecord, LayerRecord, ObjectRecord,
    PromotionRecord, Role, Session, SlotOwner, VerifiedMark, decode_number, decode_object,
    decode_time,
};
use peersync::store::format::tables::Table;
use peersync::types::Digest;

use crate::FsckError;
use crate::checker::{Checker, row};
use crate::report::Kind;

impl Checker<'_> {
    /// Drops every record that can't be believed.
    pub(crate) fn check_records(&mut self) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        let mut total = 0;
        for table in Table::ALL {
            total += snapshot.count(table)?;
        }
        self.progress.stage("records", Some(total));
        for table in Table::ALL {
            snapshot.scan(table, &[], |key, payload| {
                self.report.checked.records += 1;
                self.progress.advance(1);
                let judged = match payload {
                    Err(e) => Err((Kind::Record, e.to_string())),
                    Ok(payload) => judge(table, key, payload),
                };
                if let Err((kind, message)) = judged {
                    self.found(kind, row(table, key), message);
                    self.delete(table, key)?;
                }
                Ok::<_, FsckError>(())
            })?;
        }
        self.flush()
    }
}

/// Whether key and payload are those of the table.
fn judge(table: Table, key: &[u8], payload: &[u8]) -> Result<(), (Kind, String)> {
    if table == Table::Documents {
        return match keys::parse_digest(key) {
            Some(digest) if Digest::of(payload) == digest => Ok(()),
            _ => Err((Kind::Document, "the bytes don't have the digest".into())),
        };
    }
    if !key_fits(table, key) {
        return Err((Kind::Record, "the key is malformed".into()));
    }
    payload_fits(table, key, payload).map_err(|e| (Kind::Record, e.to_string()))
}

fn key_fits(table: Table, key: &[u8]) -> bool {
    match table {
        Table::State => [
            keys::STATE_SESSION,
            keys::STATE_NEXT_OBJECT,
            keys::STATE_NEXT_SLOT,
            keys::STATE_TABLES,
            keys::STATE_PROMISED,
        ]
        .contains(&key),
        Table::Objects | Table::Marks | Table::Removing | Table::Accesses => {
            keys::parse_object(key).is_some()
        }
        Table::Numbers | Table::Slots => keys::parse_number(key).is_some(),
        Table::Specs => keys::parse_spec_chunk(key).is_some(),
        Table::BlockIndex => keys::parse_block_row(key).is_some(),
        Table::Promotions => {
            // Literals are not content and become no object.
            keys::parse_promotion(key).is_some_and(|(_, stream)| stream != Stream::Literals)
        }
        Table::Contents => keys::parse_content(key).is_some(),
        Table::ContentIndex => keys::parse_content_row(key).is_some(),
        Table::Layers => keys::parse_layer(key).is_ok(),
        Table::LayerObjects => keys::parse_layer_object(key).is_some(),
        Table::References => keys::parse_reference(key).is_some(),
        Table::Blobs | Table::Chains | Table::Documents => keys::parse_digest(key).is_some(),
        Table::Homes => keys::parse_home(key).is_some(),
        Table::Origins => keys::parse_origin(key).is_some(),
        Table::Names | Table::Images | Table::Pins => std::str::from_utf8(key).is_ok(),
    }
}

fn payload_fits(table: Table, key: &[u8], payload: &[u8]) -> Result<(), RecordError> {
    match table {
        Table::State if key == keys::STATE_SESSION => Session::decode(payload).map(drop),
        Table::State | Table::Names => decode_number(payload).map(drop),
        Table::Objects => ObjectRecord::decode(payload).map(drop),
        Table::Numbers => decode_object(payload).map(drop),
        Table::Specs if !payload.len().is_multiple_of(36) || payload.is_empty() => {
            Err(RecordError::Malformed)
        }
        Table::Marks => VerifiedMark::decode(payload).map(drop),
        Table::Removing if payload != [0] && payload != [1] => Err(RecordError::Malformed),
        Table::Promotions => PromotionRecord::decode(payload).map(drop),
        Table::Contents => ContentRecord::decode(payload).map(drop),
        Table::Layers => LayerRecord::decode(payload).map(drop),
        Table::LayerObjects => Role::decode(payload).map(drop),
        Table::Blobs => BlobRecord::decode(payload).map(drop),
        Table::Origins if !payload.is_empty() => Err(RecordError::Malformed),
        Table::Slots => SlotOwner::decode(payload).map(drop),
        Table::Chains => ChainRecord::decode(payload).map(drop),
        Table::Images => ImageRecord::decode(payload).map(drop),
        Table::Accesses | Table::Pins => decode_time(payload).map(drop),
        Table::Specs
        | Table::Removing
        | Table::Origins
        | Table::BlockIndex
        | Table::ContentIndex
        | Table::References
        | Table::Homes
        | Table::Documents => Ok(()),
    }
}
