//! Tests of [`super`], by hand.

use super::*;

const P: usize = PAGE;

/// Pages that there has to be memory for.
fn num_pages(pages: &Pages) -> usize {
    pages.num_holders.len()
}

/// Makes a slot hold `len` positions; the copy that this took.
fn grow(pages: &mut Pages, slot: u32, len: usize) -> Option<PageCopy> {
    let with = pages.num_pages_with(slot, len).unwrap();
    let copy = pages.reserve(slot, len).unwrap();
    assert_eq!(num_pages(pages), with);
    pages.set_len(slot, len);
    assert_eq!(pages.len(slot), len);
    copy
}

/// Every page is held as often as it stands in a table, and is free where it stands in none.
fn consistent(pages: &Pages) {
    for (page, &num) in pages.num_holders.iter().enumerate() {
        let page = page as u32;
        let tables = pages.slots.iter().flat_map(|slot| &slot.pages);
        assert_eq!(tables.filter(|p| **p == page).count(), num as usize);
        let free = pages.free.iter().filter(|p| **p == page).count();
        assert_eq!(free, usize::from(num == 0));
    }
    for slot in &pages.slots {
        assert!(slot.len.div_ceil(P) <= slot.pages.len());
    }
}

#[test]
fn pages_at_their_borders() {
    for (len, num) in [
        (0, 0),
        (1, 1),
        (P - 1, 1),
        (P, 1),
        (P + 1, 2),
        (2 * P, 2),
        (2 * P + 1, 3),
    ] {
        let mut pages = Pages::new(2, 100);
        assert_eq!(grow(&mut pages, 1, len), None);
        assert_eq!(pages.pages(1).len(), num, "{len} positions");
        assert_eq!((pages.num_held(), num_pages(&pages)), (num, num));
        assert!(pages.pages(0).is_empty());
        consistent(&pages);
    }
}

#[test]
fn places_by_hand() {
    let mut pages = Pages::new(2, 100);
    grow(&mut pages, 0, 1);
    grow(&mut pages, 1, 1);
    grow(&mut pages, 0, P + 2);
    assert_eq!(pages.pages(0), [0, 2]);
    let p = P as u32;
    for (position, place) in [(0, 0), (P - 1, p - 1), (P, 2 * p), (P + 1, 2 * p + 1)] {
        assert_eq!(pages.place(0, position).unwrap(), place);
    }
    assert_eq!(pages.place(1, 0).unwrap(), p);
    let error = pages.place(1, P).unwrap_err().to_string();
    assert!(error.contains("slot 1, which has 1 pages"), "{error}");
}

#[test]
fn a_prompt_is_held_once() {
    let mut pages = Pages::new(4, 100);
    grow(&mut pages, 0, 2 * P + 5);
    for slot in 1..4 {
        pages.share(0, slot, 2 * P + 5).unwrap();
        assert_eq!(pages.pages(slot), [0, 1, 2]);
    }
    assert_eq!(pages.num_held(), 3);
    // each goes on in the page that was begun: all but the last one get one of their own, of five positions
    for slot in 0..3 {
        let to = 3 + slot;
        let copy = PageCopy {
            from: 2,
            to,
            num_positions: 5,
        };
        assert_eq!(grow(&mut pages, slot, 2 * P + 6), Some(copy));
        assert_eq!(pages.pages(slot), [0, 1, to]);
    }
    assert_eq!(grow(&mut pages, 3, 2 * P + 6), None);
    assert_eq!(pages.pages(3), [0, 1, 2]);
    assert_eq!(pages.num_held(), 2 + 4);
    // and none has to copy again
    assert_eq!(grow(&mut pages, 0, 3 * P), None);
    consistent(&pages);
}

#[test]
fn whole_pages_are_never_copied() {
    let mut pages = Pages::new(3, 100);
    grow(&mut pages, 0, 2 * P);
    pages.share(0, 1, 2 * P).unwrap();
    // a part of what another slot holds ends where a page does
    pages.share(0, 2, P).unwrap();
    assert_eq!(pages.pages(2), [0]);
    for (slot, page) in [(1, 2), (0, 3)] {
        assert_eq!(grow(&mut pages, slot, 2 * P + 1), None);
        assert_eq!(pages.pages(slot), [0, 1, page]);
    }
    assert_eq!(grow(&mut pages, 2, P + 1), None);
    assert_eq!(pages.pages(2), [0, 4]);
    consistent(&pages);
}

#[test]
fn what_is_given_back_is_used_first() {
    let mut pages = Pages::new(3, 100);
    grow(&mut pages, 0, 3 * P);
    grow(&mut pages, 1, P);
    pages.clear(0).unwrap();
    assert_eq!((pages.num_held(), num_pages(&pages)), (1, 4));
    assert_eq!((pages.len(0), pages.pages(0).len()), (0, 0));
    grow(&mut pages, 2, 2 * P);
    assert_eq!(pages.pages(2), [0, 1]);
    grow(&mut pages, 1, 2 * P);
    assert_eq!(pages.pages(1), [3, 2]);
    assert_eq!(num_pages(&pages), 4);
    grow(&mut pages, 1, 2 * P + 1);
    assert_eq!(pages.pages(1), [3, 2, 4]);
    consistent(&pages);
}

#[test]
fn a_shared_page_stays_until_the_last_holder_goes() {
    let mut pages = Pages::new(3, 100);
    grow(&mut pages, 0, P + 1);
    pages.share(0, 1, P + 1).unwrap();
    pages.share(1, 2, P + 1).unwrap();
    for (slot, held) in [(0, 2), (2, 2), (1, 0)] {
        pages.clear(slot).unwrap();
        assert_eq!(pages.num_held(), held);
        consistent(&pages);
    }
}

#[test]
fn a_slot_is_cut_to_its_prompt() {
    let mut pages = Pages::new(2, 100);
    grow(&mut pages, 0, 4 * P);
    pages.share(0, 0, P + 3).unwrap();
    assert_eq!(pages.pages(0), [0, 1]);
    assert_eq!((pages.len(0), pages.num_held()), (P + 3, 2));
    assert_eq!(grow(&mut pages, 0, P + 4), None);
    // what a slot held before it shares is given back, even of the one that it shares with
    pages.share(0, 1, P + 4).unwrap();
    pages.share(1, 0, P).unwrap();
    assert_eq!((pages.pages(0), pages.pages(1)), (&[0][..], &[0, 1][..]));
    pages.share(0, 1, 0).unwrap();
    assert_eq!((pages.len(1), pages.num_held()), (0, 1));
    consistent(&pages);
}

#[test]
fn no_more_pages_is_an_error() {
    let mut pages = Pages::new(3, 3);
    grow(&mut pages, 0, P + 1);
    pages.share(0, 1, P + 1).unwrap();
    // one page is left: for the copy, not for the copy and one more
    for len in [2 * P + 1, 100 * P] {
        let error = pages.reserve(1, len).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("slot 1") && text.contains("2 of 3 pages"),
            "{text}"
        );
        assert!(error.hint().unwrap().contains("fewer sequences"));
        assert_eq!(pages.pages(1), [0, 1], "nothing has changed");
        consistent(&pages);
    }
    assert!(grow(&mut pages, 1, P + 2).is_some());
    assert!(pages.reserve(2, 1).is_err());
    pages.clear(0).unwrap();
    assert_eq!(grow(&mut pages, 2, 1), None);
    consistent(&pages);
}

#[test]
fn slots_that_are_not_there() {
    let mut pages = Pages::new(2, 100);
    grow(&mut pages, 0, 3);
    for error in [
        pages.clear(2).unwrap_err(),
        pages.share(0, 2, 1).unwrap_err(),
        pages.share(2, 0, 0).unwrap_err(),
        pages.reserve(2, 1).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "cache slot 2 of 2");
    }
    let error = pages.share(0, 1, 4).unwrap_err().to_string();
    assert_eq!(error, "slot 0 holds 3 positions, not 4");
    assert_eq!((pages.len(0), pages.len(1), pages.len(9)), (3, 0, 0));
}

#[test]
fn a_long_run_of_everything_stays_consistent() {
    let mut pages = Pages::new(6, 40);
    let mut state = 7u64;
    let mut below = |n: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % n
    };
    let mut num_full = 0;
    for _ in 0..5000 {
        let (slot, other) = (below(6) as u32, below(6) as u32);
        match below(5) {
            0 => pages.clear(slot).unwrap(),
            1 => {
                let len = below(pages.len(other) as u64 + 1) as usize;
                pages.share(other, slot, len).unwrap();
            }
            _ => {
                let len = pages.len(slot) + below(3 * P as u64) as usize;
                match pages.reserve(slot, len) {
                    Ok(copy) => {
                        pages.set_len(slot, len);
                        let owned = copy.map(|copy| copy.to);
                        assert!(owned.is_none_or(|page| pages.num_holders[page as usize] == 1));
                    }
                    Err(_) => num_full += 1,
                }
            }
        }
        consistent(&pages);
        assert!(num_pages(&pages) <= 40);
    }
    assert!(num_full > 0);
}
