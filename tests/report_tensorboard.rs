//! Event files as a killed and resumed run leaves them, with what TensorBoard should make of them written beside, for
//! `tests/peers/tensorboard_read.py`; and the framing read back here.

use std::path::Path;

use distill::report::EventWriter;

/// The curves that TensorBoard should show: step and value by name.
fn expected() -> serde_json::Value {
    let curve = |scale: f64| -> Vec<(u64, f32)> {
        // steps 1 to 6 of the first life, 7 and 8 of it lost, then from 7 on by the second
        (1..=6)
            .map(|s| (s, (scale * s as f64) as f32))
            .chain((7..=10).map(|s| (s, (scale * s as f64) as f32 + 0.5)))
            .collect()
    };
    serde_json::json!({"train/loss": curve(0.25), "train/learning_rate": curve(1e-5)})
}

#[test]
fn a_resumed_run_is_one_curve() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report_tensorboard");
    let _ = std::fs::remove_dir_all(&folder);
    let mut writer = EventWriter::create(&folder, 0).unwrap();
    for step in 1..=8 {
        let x = step as f64;
        writer
            .scalars(
                step,
                &[("train/loss", 0.25 * x), ("train/learning_rate", 1e-5 * x)],
            )
            .unwrap();
    }
    drop(writer);
    let mut writer = EventWriter::create(&folder, 6).unwrap();
    for step in 7..=10 {
        let x = step as f64;
        let values = [
            ("train/loss", 0.25 * x + 0.5),
            ("train/learning_rate", (1e-5 * x) as f32 as f64 + 0.5),
        ];
        writer.scalars(step, &values).unwrap();
    }
    writer.flush().unwrap();
    std::fs::write(folder.join("expected.json"), expected().to_string()).unwrap();
    // record lengths add up to the file: nothing is left over
    let bytes = std::fs::read(writer.path()).unwrap();
    let (mut at, mut records) = (0, 0);
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        at += 16 + length;
        records += 1;
    }
    // version, start of session, four steps
    assert_eq!((at, records), (bytes.len(), 6));
}
