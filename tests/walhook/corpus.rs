//! Every input that fuzzing kept, through the functions that are fuzzed: what it found once stays mended, with no nightly
//! toolchain at hand.

use std::panic::catch_unwind;

use crate::daemon::root;

#[path = "../../fuzz/inputs.rs"]
mod inputs;

/// Runs the folder's inputs, each on its own; gives how many there were.
fn replay(folder: &str, target: fn(&[u8])) {
    let folder = root().join("fuzz/corpus").join(folder);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        assert!(catch_unwind(|| target(&input)).is_ok(), "{}: see the panic above", path.display());
        count += 1;
    }
    assert!(count >= 10, "only {count} inputs in {}", folder.display());
}

#[test]
fn what_was_fuzzed_decodes_or_is_refused() {
    replay("decoder", inputs::decoder);
}

#[test]
fn what_was_fuzzed_as_a_stream_is_cut_into_frames_or_refused() {
    replay("frames", inputs::frames);
}

#[test]
fn what_was_fuzzed_as_a_value_is_one_json_value_within_its_bound() {
    replay("value", inputs::value);
}

#[test]
fn what_was_fuzzed_as_a_change_is_one_message_within_its_bound() {
    replay("message", inputs::message);
}

#[test]
fn every_byte_of_a_corpus_input_may_be_another() {
    // A poor man's fuzzing, the same at each run.
    let mut chance = fastrand::Rng::with_seed(4);
    for (folder, target) in [
        ("decoder", inputs::decoder as fn(&[u8])),
        ("frames", inputs::frames),
        ("value", inputs::value),
        ("message", inputs::message),
    ] {
        for entry in std::fs::read_dir(root().join("fuzz/corpus").join(folder)).unwrap() {
            let input = std::fs::read(entry.unwrap().path()).unwrap();
            for _ in 0..40 {
                let mut changed = input.clone();
                for _ in 0..chance.usize(1..4) {
                    let (place, byte) = (chance.usize(..changed.len().max(1)), chance.u8(..));
                    changed.get_mut(place).into_iter().for_each(|changed| *changed = byte);
                }
                assert!(catch_unwind(|| target(&changed)).is_ok(), "{folder}: {changed:?}");
            }
        }
    }
}
