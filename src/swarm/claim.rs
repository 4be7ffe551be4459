//! A claim's signature: nobody can stand, or stay in office, in another's name.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use super::elect::{Claim, Score};

/// What a signature is for, so that it is good for nothing else.
pub const DOMAIN: &[u8] = b"peersync 2026 tracker claim v1";

/// The signature over a claim by the key of [`Claim::tracker`].
pub fn sign(claim: &Claim, key: &SigningKey) -> [u8; 64] {
    key.sign(&message(claim)).to_bytes()
}

/// Whether the node that the claim names has signed it, and it says nothing that
/// can't be.
pub fn is_authentic(claim: &Claim, signature: &[u8; 64]) -> bool {
    let Ok(name) = VerifyingKey::from_bytes(&claim.tracker.0) else { return false };
    claim.score <= Score::MAX
        && name.verify_strict(&message(claim), &Signature::from_bytes(signature)).is_ok()
}

fn message(claim: &Claim) -> Vec<u8> {
    let mut message = DOMAIN.to_vec();
    message.extend(claim.tracker.0);
    message.extend(claim.score.points().to_le_bytes());
    message.extend(claim.sequence.to_le_bytes());
    message.push(u8::from(claim.settled));
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PeerId;

    #[test]
    fn a_claim_is_its_trackers_and_as_it_made_it() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let tracker = PeerId(key.verifying_key().to_bytes());
        let claim = Claim { tracker, score: Score::told(500), sequence: 7, settled: false };
        let signature = sign(&claim, &key);
        assert!(is_authentic(&claim, &signature));
        for changed in [
            Claim { score: Score::told(501), ..claim },
            Claim { sequence: 8, ..claim },
            Claim { settled: true, ..claim },
            Claim { tracker: PeerId([7; 32]), ..claim },
        ] {
            assert!(!is_authentic(&changed, &signature), "{changed:?}");
        }
        let other = SigningKey::from_bytes(&[2; 32]);
        assert!(!is_authentic(&claim, &sign(&claim, &other)));
    }
}
