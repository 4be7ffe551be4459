//! What a promise is worth: it proves that whoever gives it has the object, and is
//! signed.
//!
//! Who asks names a block that it has itself and a nonce; who promises hashes the
//! block with the nonce and both names, which nobody can do without the block, nor
//! another node in its place. A node that fetches the block to answer has then at
//! least the way to the content; that is as far as a proof can go, so a promise of
//! one that lies costs a copy, but only of an object of which it could get a block
//! within the time for an answer.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::types::{ObjectId, PeerId};

/// What a signature is for, so that it is good for nothing else.
const PROMISE: &[u8] = b"peersync 2026 promise to keep v1";
/// The same for a proof.
const PROOF: &[u8] = b"peersync 2026 proof of having v1";

/// Who promises whom, in answer to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parties<'a> {
    /// Who promises.
    pub promiser: &'a PeerId,
    /// Who asked.
    pub asker: &'a PeerId,
    /// The question's nonce.
    pub nonce: &'a [u8; 32],
}

impl Parties<'_> {
    /// The proof of having block `index` of an object: BLAKE3, keyed by the nonce.
    pub fn proof(&self, object: &ObjectId, index: u32, block: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(self.nonce);
        hasher.update(PROOF).update(&self.promiser.0).update(&self.asker.0);
        hasher.update(object.as_bytes()).update(&index.to_le_bytes());
        *hasher.update(block).finalize().as_bytes()
    }

    /// The promiser's signature over its answers, as they stand on the wire: each is
    /// an object, the block that was asked for, and the answer's bytes.
    pub fn sign(&self, seconds: u16, answers: &[u8], key: &SigningKey) -> [u8; 64] {
        key.sign(&self.statement(seconds, answers)).to_bytes()
    }

    /// Whether the promiser has signed these.
    pub fn is_signed(&self, seconds: u16, answers: &[u8], signature: &[u8; 64]) -> bool {
        let Ok(name) = VerifyingKey::from_bytes(&self.promiser.0) else { return false };
        let signature = Signature::from_bytes(signature);
        name.verify_strict(&self.statement(seconds, answers), &signature).is_ok()
    }

    fn statement(&self, seconds: u16, answers: &[u8]) -> Vec<u8> {
        let mut text = PROMISE.to_vec();
        text.extend(self.promiser.0);
        text.extend(self.asker.0);
        text.extend(self.nonce);
        text.extend(seconds.to_le_bytes());
        text.extend(answers);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_of_one_node_to_one_node_in_answer_to_one_question() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let (promiser, asker) = (PeerId(key.verifying_key().to_bytes()), PeerId([2; 32]));
        let parties = Parties { promiser: &promiser, asker: &asker, nonce: &[3; 32] };
        let signature = parties.sign(60, b"answers", &key);
        assert!(parties.is_signed(60, b"answers", &signature));
        assert!(!parties.is_signed(61, b"answers", &signature));
        assert!(!parties.is_signed(60, b"answer", &signature));
        let object = ObjectId::from_bytes([4; 32]);
        let proof = parties.proof(&object, 5, b"block");
        assert_ne!(proof, parties.proof(&object, 6, b"block"));
        assert_ne!(proof, parties.proof(&object, 5, b"clock"));
        let other = PeerId([9; 32]);
        for changed in [
            Parties { promiser: &other, ..parties },
            Parties { asker: &other, ..parties },
            Parties { nonce: &[7; 32], ..parties },
        ] {
            assert!(!changed.is_signed(60, b"answers", &signature), "{changed:?}");
            assert_ne!(proof, changed.proof(&object, 5, b"block"));
        }
    }
}
