//! Which pages hold the keys and values of which sequence: a table a slot, how many slots hold each page, and which pages
//! nobody holds. No tensors: what a page holds is `ops::paged`'s.
//!
//! A page that several slots hold is only read. Who appends to one first gets a copy of its own.

use crate::ops::paged::PAGE;
use crate::{Error, Result};

/// The first `num_positions` of page `from` have to be copied to page `to` before anything else is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    pub from: u32,
    pub to: u32,
    pub num_positions: usize,
}

/// The pages of all slots. A slot's pages may reach further than its positions.
pub struct Pages {
    slots: Vec<Slot>,
    /// Of each page, how many slots hold it.
    num_holders: Vec<u32>,
    /// Pages that no slot holds; the last one is taken first.
    free: Vec<u32>,
    most: usize,
}

#[derive(Clone, Default)]
struct Slot {
    pages: Vec<u32>,
    len: usize,
}

impl Pages {
    /// Empty slots, which hold at most `most` pages together.
    pub fn new(num_slots: usize, most: usize) -> Self {
        Self {
            slots: vec![Slot::default(); num_slots],
            num_holders: Vec::new(),
            free: Vec::new(),
            // a place in a page has 32 bits
            most: most.min(u32::MAX as usize / PAGE),
        }
    }

    /// Number of slots.
    pub fn num_slots(&self) -> usize {
        self.slots.len()
    }

    /// Positions of a slot; none of one that is not there.
    pub fn len(&self, slot: u32) -> usize {
        self.slots.get(slot as usize).map_or(0, |slot| slot.len)
    }

    /// Pages of a slot, in order.
    pub fn pages(&self, slot: u32) -> &[u32] {
        self.slots
            .get(slot as usize)
            .map_or(&[], |slot| &slot.pages)
    }

    /// Pages that a slot holds; one that several do counts once.
    pub fn num_held(&self) -> usize {
        self.num_holders.len() - self.free.len()
    }

    /// The place of a position of a slot: its page times the positions of a page, and its place in there.
    pub fn place(&self, slot: u32, position: usize) -> Result<u32> {
        match self.pages(slot).get(position / PAGE) {
            Some(page) => Ok(page * PAGE as u32 + (position % PAGE) as u32),
            None => Err(Error::input(format!(
                "position {position} of cache slot {slot}, which has {} pages",
                self.pages(slot).len()
            ))),
        }
    }

    /// Errs where there is no such slot.
    pub fn check(&self, slot: u32) -> Result<()> {
        if (slot as usize) < self.slots.len() {
            return Ok(());
        }
        Err(Error::input(format!(
            "cache slot {slot} of {}",
            self.slots.len()
        )))
    }

    /// Empties a slot; pages that nobody else holds are free again.
    pub fn clear(&mut self, slot: u32) -> Result<()> {
        self.check(slot)?;
        self.cut(slot, 0);
        Ok(())
    }

    /// Makes `to` hold the first `len` positions of `from`, in the same pages, and nothing else.
    pub fn share(&mut self, from: u32, to: u32, len: usize) -> Result<()> {
        self.check(from)?;
        self.check(to)?;
        if len > self.len(from) {
            return Err(Error::input(format!(
                "slot {from} holds {} positions, not {len}",
                self.len(from)
            )));
        }
        if from == to {
            self.cut(to, len);
            return Ok(());
        }
        let pages = self.pages(from)[..len.div_ceil(PAGE)].to_vec();
        for &page in &pages {
            self.num_holders[page as usize] += 1;
        }
        self.cut(to, 0);
        self.slots[to as usize] = Slot { pages, len };
        Ok(())
    }

    /// How many pages there has to be memory for once [`Pages::reserve`] was called the same.
    ///
    /// # Errors
    /// There are no more pages.
    pub fn num_pages_with(&self, slot: u32, len: usize) -> Result<usize> {
        self.check(slot)?;
        let missing = len.div_ceil(PAGE).saturating_sub(self.pages(slot).len());
        let copied = usize::from(self.shared_end(slot, len).is_some());
        let new = (missing + copied).saturating_sub(self.free.len());
        if self.num_holders.len() + new > self.most {
            return Err(Error::input(format!(
                "cache slot {slot} has no page left for {len} positions: {} of {} pages of {PAGE} positions are held",
                self.num_held(),
                self.most
            ))
            .with_hint("sample fewer sequences side by side, or shorter ones"));
        }
        Ok(self.num_holders.len() + new)
    }

    /// Makes room for a slot to grow to `len` positions: where the page that it goes on in is another's too, a copy is to be
    /// made first.
    ///
    /// # Errors
    /// There are no more pages; nothing has changed.
    pub fn reserve(&mut self, slot: u32, len: usize) -> Result<Option<PageCopy>> {
        self.num_pages_with(slot, len)?;
        let copy = self.shared_end(slot, len).map(|from| {
            let (to, held) = (self.take(), self.len(slot));
            self.slots[slot as usize].pages[held / PAGE] = to;
            self.num_holders[from as usize] -= 1;
            PageCopy {
                from,
                to,
                num_positions: held % PAGE,
            }
        });
        while self.pages(slot).len() < len.div_ceil(PAGE) {
            let page = self.take();
            self.slots[slot as usize].pages.push(page);
        }
        Ok(copy)
    }

    /// The page that a slot goes on in when it grows to `len` positions, where others hold it too.
    fn shared_end(&self, slot: u32, len: usize) -> Option<u32> {
        let held = self.len(slot);
        let page = *self.pages(slot).get(held / PAGE)?;
        let begun = len > held && !held.is_multiple_of(PAGE);
        (begun && self.num_holders[page as usize] > 1).then_some(page)
    }

    /// A slot holds so many positions, which it has room for.
    pub fn set_len(&mut self, slot: u32, len: usize) {
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            slot.len = len.min(slot.pages.len() * PAGE);
        }
    }

    /// A page that nobody holds.
    fn take(&mut self) -> u32 {
        if let Some(page) = self.free.pop() {
            self.num_holders[page as usize] = 1;
            return page;
        }
        self.num_holders.push(1);
        self.num_holders.len() as u32 - 1
    }

    /// Keeps the first `len` positions of a slot and the pages that hold them.
    fn cut(&mut self, slot: u32, len: usize) {
        let Slot { pages, len: held } = &mut self.slots[slot as usize];
        *held = len;
        // the first one becomes the next that is taken
        for page in pages.drain(len.div_ceil(PAGE)..).rev() {
            let holders = &mut self.num_holders[page as usize];
            *holders -= 1;
            if *holders == 0 {
                self.free.push(page);
            }
        }
    }
}

#[cfg(test)]
#[path = "pages_tests.rs"]
mod tests;
