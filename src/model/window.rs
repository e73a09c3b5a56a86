//! Streamed weights while they are on a device: those of the block that computes, and on their way those of the block that
//! comes next. Which one that is follows from the way the pass goes: up through the blocks, or down as a backward does.

use super::frozen::{Frozen, OnDevice};
use crate::Result;
use crate::ops::ParamId;
use crate::ops::staging::{Coming, Staging};
use candle_core::{DType, Device};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Weights of a block.
const A_BLOCK: usize = 7;

pub(super) struct Window {
    staging: Staging,
    held: BTreeMap<ParamId, OnDevice>,
    coming: BTreeMap<ParamId, Coming>,
    /// The block that computes.
    block: Option<usize>,
    /// After the last block the first one came, not the way back.
    begins_anew: bool,
}

impl Window {
    /// None for a device that copies nothing beside its work.
    ///
    /// # Errors
    /// The device refuses.
    pub(super) fn of(device: &Device) -> Result<Option<Self>> {
        let staging = Staging::of(device)?;
        Ok(staging.map(|staging| Self {
            staging,
            held: BTreeMap::new(),
            coming: BTreeMap::new(),
            block: None,
            begins_anew: false,
        }))
    }

    /// A weight of `all`, on the device.
    ///
    /// # Errors
    /// It cannot be read; the device has no room.
    pub(super) fn weight(
        &mut self,
        all: &BTreeMap<ParamId, Arc<Frozen>>,
        id: ParamId,
        frozen: &Arc<Frozen>,
        dtype: DType,
    ) -> Result<OnDevice> {
        let block = all.range(..id).count() / A_BLOCK;
        if self.block != Some(block) {
            self.enter(all, block)?;
        }
        if let Some(weight) = self.held.get(&id) {
            return Ok(weight.clone());
        }
        let coming = match self.coming.remove(&id) {
            Some(coming) => coming,
            None => self.staging.begin(Frozen::parts(frozen))?,
        };
        let weight = frozen.landed(coming.wait()?, dtype)?;
        self.held.insert(id, weight.clone());
        Ok(weight)
    }

    /// Lets go of other blocks, and sends for this one and the next.
    fn enter(&mut self, all: &BTreeMap<ParamId, Arc<Frozen>>, block: usize) -> Result<()> {
        let num_blocks = all.len().div_ceil(A_BLOCK);
        if self.block.is_some_and(|before| before + 1 == num_blocks) {
            self.begins_anew = block == 0;
        }
        let next = next(self.block, block, num_blocks, self.begins_anew);
        self.block = Some(block);
        let of = |block: usize| all.iter().skip(block * A_BLOCK).take(A_BLOCK);
        self.held
            .retain(|id, _| of(block).any(|(other, _)| other == id));
        let wanted: Vec<usize> = [Some(block), next].into_iter().flatten().collect();
        self.coming.retain(|id, _| {
            let mut places = wanted.iter().flat_map(|&block| of(block));
            places.any(|(other, _)| other == id)
        });
        for (&id, frozen) in wanted.iter().flat_map(|&block| of(block)) {
            if !self.held.contains_key(&id) && !self.coming.contains_key(&id) {
                let coming = self.staging.begin(Frozen::parts(frozen))?;
                self.coming.insert(id, coming);
            }
        }
        Ok(())
    }
}

/// The block that comes after `now`: the next one the same way; at the end the first again where passes have no way back,
/// else the one that this begins with.
fn next(before: Option<usize>, now: usize, num_blocks: usize, begins_anew: bool) -> Option<usize> {
    let above = (now + 1 < num_blocks).then_some(now + 1);
    let below = now.checked_sub(1);
    match before.is_none_or(|before| before < now || before + 1 == num_blocks && now == 0) {
        true if above.is_none() && begins_anew => Some(0),
        true => above.or(below),
        false => below.or(above),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_and_down_again() {
        // forward over four blocks, backward, forward
        let pass = [0, 1, 2, 3, 2, 1, 0, 1];
        let mut before = None;
        let mut sent = Vec::new();
        for now in pass {
            sent.push(next(before, now, 4, false));
            before = Some(now);
        }
        let expected = [1, 2, 3, 2, 1, 0, 1, 2];
        assert_eq!(sent, expected.map(Some));
        // forward alone: from the last to the first
        assert_eq!(next(Some(3), 0, 4, true), Some(1));
        assert_eq!(next(Some(2), 3, 4, true), Some(0));
        assert_eq!(next(Some(1), 0, 2, false), Some(1));
        assert_eq!(next(None, 0, 1, false), None);
    }
}
