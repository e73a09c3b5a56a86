//! Tests of [`super`] on the CPU; `tests/cuda_attention.rs` has those of the kernels.

use super::*;

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn largest_gap(a: &Tensor, b: &Tensor) -> f32 {
    let gap = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
    gap.max(0).unwrap().to_scalar().unwrap()
}

/// Memory for `num_pages`, with NaN where nothing was written.
fn pool(num_layers: usize, num_kv_heads: usize, head_dim: usize, num_pages: usize) -> KvPool {
    let shape = PoolShape {
        num_layers,
        num_kv_heads,
        head_dim,
    };
    let mut pool = KvPool::new(shape, DType::F32, &Device::Cpu);
    pool.reserve(num_pages).unwrap();
    for chunk in &pool.chunks {
        cpu::modify::<f32>(chunk, |values| values.fill(f32::NAN)).unwrap();
    }
    pool
}

fn places(pages: &[u32], len: usize) -> Vec<u32> {
    let place = |t| pages[t / PAGE] * PAGE as u32 + (t % PAGE) as u32;
    (0..len).map(place).collect()
}

#[test]
fn places_by_hand() {
    // two layers, two heads, two dims: position 3 of page 17, which is the second one of the second chunk
    let pool = pool(2, 2, 2, 18);
    let k = Tensor::new(&[[[1f32, 2.0], [3.0, 4.0]]], &Device::Cpu).unwrap();
    let v = (&k * 10.0).unwrap();
    pool.append(1, &k, &v, &[17 * 64 + 3]).unwrap();
    assert_eq!(
        (pool.num_pages(), pool.bytes_a_page()),
        (32, 2 * 2 * 2 * 64 * 2 * 4)
    );
    assert!(values(&pool.chunks[0]).iter().all(|x| x.is_nan()));
    let held = values(&pool.chunks[1]);
    let (head, layer) = (64 * 2, 4 * 64 * 2);
    let start = 2 * layer + layer + 3 * 2;
    for (i, x) in held.iter().enumerate() {
        let written = [
            (0, 1.0),
            (1, 2.0),
            (head, 3.0),
            (head + 1, 4.0),
            (2 * head, 10.0),
            (2 * head + 1, 20.0),
            (3 * head, 30.0),
            (3 * head + 1, 40.0),
        ];
        match written.iter().find(|(at, _)| start + at == i) {
            Some((_, want)) => assert_eq!(x, want),
            None => assert!(x.is_nan(), "{i}"),
        }
    }
}

#[test]
fn growing_leaves_what_is_there_where_it_is() {
    let mut pool = pool(1, 1, 8, 1);
    let address = |pool: &KvPool| cpu::values::<f32>(&pool.chunks[0]).unwrap().as_ptr();
    let before = address(&pool);
    for (num, pages) in [(0, 16), (16, 16), (17, 32), (5, 32), (100, 112)] {
        pool.reserve(num).unwrap();
        assert_eq!(pool.num_pages(), pages);
    }
    assert_eq!(address(&pool), before);
}

#[test]
fn attention_is_the_portable_one_wherever_pages_lie() {
    // head dims of one to eight registers, heads that share keys in odd numbers, and what fits no register
    let shapes = [
        (4, 2, 8),
        (3, 3, 5),
        (8, 1, 64),
        (10, 2, 16),
        (7, 1, 32),
        (6, 2, 128),
        (2, 1, 48),
    ];
    // the first two share a page, the others are at a page's border; two chunks
    let sequences: [(&[u32], usize); 5] = [
        (&[19, 3, 4], 2 * PAGE + 22),
        (&[19, 7], PAGE + 1),
        (&[0], PAGE),
        (&[30], PAGE - 1),
        (&[5], 1),
    ];
    for (h, k, d) in shapes {
        let pools = [pool(2, k, d, 32), pool(2, k, d, 32), pool(2, k, d, 32)];
        // the same in other pages
        let elsewhere = |pages: &[u32]| pages.iter().map(|p| 31 - p).collect::<Vec<u32>>();
        for layer in 0..2 {
            for (pages, len) in sequences {
                let (keys, vals) = (random(&[len, k, d]), random(&[len, k, d]));
                let all = places(pages, len);
                pools[0].append(layer, &keys, &vals, &all).unwrap();
                pools[1].append_portable(layer, &keys, &vals, &all).unwrap();
                let other = places(&elsewhere(pages), len);
                pools[2].append(layer, &keys, &vals, &other).unwrap();
            }
        }
        let lens: Vec<u32> = sequences.iter().map(|(_, len)| *len as u32).collect();
        let rows: Vec<&[u32]> = sequences.iter().map(|(pages, _)| *pages).collect();
        let table = PageTable::new(&rows, &lens).unwrap();
        let others: Vec<Vec<u32>> = rows.iter().map(|row| elsewhere(row)).collect();
        let others: Vec<&[u32]> = others.iter().map(|row| &row[..]).collect();
        let others = PageTable::new(&others, &lens).unwrap();
        for layer in 0..2 {
            for i in 0..sequences.len() {
                let [a, b] =
                    [0, 1].map(|p: usize| values(&pools[p].held(layer, &table, i).unwrap()));
                assert_eq!(a, b);
                assert!(a.iter().all(|x| x.is_finite()));
            }
            let q = random(&[sequences.len(), h, d]);
            let o = pools[0].attention(layer, &q, &table, 0.3).unwrap();
            let expected = pools[0].attention_portable(layer, &q, &table, 0.3).unwrap();
            assert!(largest_gap(&o, &expected) < 1e-5);
            // to the bit: in other pages, and alone
            let elsewhere = pools[2].attention(layer, &q, &others, 0.3).unwrap();
            assert_eq!(values(&elsewhere), values(&o));
            for row in 0..sequences.len() {
                let q = q.narrow(0, row, 1).unwrap();
                let table = PageTable::new(&rows[row..=row], &lens[row..=row]).unwrap();
                let alone = pools[0].attention(layer, &q, &table, 0.3).unwrap();
                assert_eq!(values(&alone), values(&o.narrow(0, row, 1).unwrap()));
            }
        }
    }
}

#[test]
fn pages_are_copied_as_far_as_they_are_held() {
    for dtype in [DType::F32, DType::F64] {
        let shape = PoolShape {
            num_layers: 2,
            num_kv_heads: 3,
            head_dim: 8,
        };
        let mut pool = KvPool::new(shape, dtype, &Device::Cpu);
        pool.reserve(32).unwrap();
        let x = |layer: usize| {
            let x = random(&[PAGE, 3, 8]);
            (
                (&x + layer as f64).unwrap().to_dtype(dtype).unwrap(),
                x.to_dtype(dtype).unwrap(),
            )
        };
        for layer in 0..2 {
            let (k, v) = x(layer);
            pool.append(layer, &k, &v, &places(&[2], PAGE)).unwrap();
        }
        // within a chunk and to another, all and a part
        for (to, len) in [(3, PAGE), (31, PAGE), (4, 5), (30, 5), (2, 7)] {
            pool.copy_page(2, to, len).unwrap();
            for layer in 0..2 {
                let table = |page: u32| PageTable::new(&[&[page]], &[len as u32]).unwrap();
                let held = |page: u32| {
                    let held = pool.held(layer, &table(page), 0).unwrap();
                    values(&held.to_dtype(DType::F32).unwrap())
                };
                assert_eq!(held(to), held(2));
            }
        }
        assert!(pool.copy_page(2, 32, 1).is_err());
        assert!(pool.copy_page(32, 2, 1).is_err());
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let pool = pool(2, 1, 8, 1);
    let x = random(&[1, 1, 8]);
    pool.append(1, &x, &x, &[16 * 64 - 1]).unwrap();
    assert!(pool.append(2, &x, &x, &[0]).is_err(), "layer");
    assert!(pool.append(0, &x, &x, &[16 * 64]).is_err(), "page");
    assert!(pool.append(0, &x, &x, &[0, 1]).is_err(), "tokens");
    assert!(
        pool.append(0, &x, &random(&[1, 2, 8]), &[0]).is_err(),
        "heads"
    );
    let wide = x.to_dtype(DType::F64).unwrap();
    assert!(pool.append(0, &wide, &wide, &[0]).is_err(), "dtype");
    for (pages, lens) in [(&[][..], 1), (&[0][..], 65), (&[0][..], 0)] {
        assert!(PageTable::new(&[pages], &[lens]).is_err());
    }
    assert!(PageTable::new(&[&[0]], &[1, 1]).is_err());
    let one = PageTable::new(&[&[0]], &[1]).unwrap();
    for (q, layer) in [
        (random(&[2, 1, 8]), 0),
        (random(&[1, 1, 16]), 0),
        (random(&[1, 1, 8]), 2),
    ] {
        assert!(pool.attention(layer, &q, &one, 1.0).is_err());
    }
    let beyond = PageTable::new(&[&[16]], &[1]).unwrap();
    assert!(pool.attention(0, &x, &beyond, 1.0).is_err());
    assert!(pool.held(0, &beyond, 0).is_err());
}
