//! Models: artifacts whose layers are files, and files that their own library opens.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::indexed::lazy_image;
use crate::harness::layout::Layout;
use crate::harness::peersync::Peersync;
use crate::harness::registry::Registry;
use crate::harness::{lab_images, needs_mounts, run, scratch, tool};

/// Reads one tensor through the safetensors library and prints its shape and sum.
const READ_TENSOR: &str = r#"
import sys
from safetensors import safe_open
with safe_open(sys.argv[1], framework="numpy") as file:
    names = sorted(file.keys())
    tensor = file.get_tensor("layers.7.weight")
    print(len(names), tensor.shape, tensor.view("uint16").astype("uint64").sum())
"#;

/// Makes a model of one matrix, 4 MiB of weights.
const MAKE_ONNX: &str = r#"
import sys, numpy, onnx
from onnx import TensorProto, helper, numpy_helper
weights = numpy.arange(1 << 20, dtype=numpy.float32).reshape(1024, 1024) % 251
shape = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1024])
graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "one", [shape("x")],
    [shape("y")], [numpy_helper.from_array(weights, "w")])
onnx.save(helper.make_model(graph), sys.argv[1])
"#;

/// Checks a model and runs it, and prints what comes out.
const RUN_ONNX: &str = r#"
import sys, numpy, onnx
from onnx.reference import ReferenceEvaluator
onnx.checker.check_model(sys.argv[1])
y, = ReferenceEvaluator(sys.argv[1]).run(None, {"x": numpy.ones((1, 1024), numpy.float32)})
print(y.shape, y.sum())
"#;

fn read_tensor(file: &Path) -> Option<String> {
    python(READ_TENSOR, file)
}

/// Runs a script on a file, with the libraries that `tests/run` installs.
fn python(script: &str, file: &Path) -> Option<String> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/lab/venv/bin/python3");
    if !python.exists() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "tests/run makes the environment");
        eprintln!("skipped: no libraries of models (tests/run installs them)");
        return None;
    }
    Some(run(Command::new(python).args(["-c", script]).arg(file)))
}

fn model() -> (tempfile::TempDir, std::path::PathBuf) {
    let place = scratch();
    let file = place.path().join("model.safetensors");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/model.py");
    tool("python3", &[script.as_os_str(), file.as_os_str(), "24".as_ref()]);
    (place, file)
}

#[test]
fn safetensors_opens_a_model_in_a_mounted_image() {
    needs_mounts!();
    let indexed = lazy_image();
    let (line, image) = indexed.line();
    let peersync = Peersync::new();
    let mount = peersync.mount(&image, &["--index", "require"]);
    let before = line.down();
    let (_place, reference) = model();
    let given = read_tensor(&mount.join("models/model.safetensors"));
    assert_eq!(given, read_tensor(&reference));
    // One tensor of sixteen, through checkpoints 4 MiB apart.
    let (fetched, whole) = (line.down() - before, 24 << 20);
    eprintln!("one tensor of sixteen: {fetched} of {whole} bytes");
    assert!(fetched < whole, "{fetched} of {whole}");
}

#[test]
fn a_model_artifact_shows_its_files_by_their_titles() {
    needs_mounts!();
    let (_place, reference) = model();
    let bytes = fs::read(&reference).expect("model");
    let place = scratch();
    let mut layout = Layout::create(place.path());
    let files: [(&str, &[u8]); 3] = [
        ("model.safetensors", &bytes),
        ("tokenizer/vocab.txt", b"a\nb\n"),
        ("config.json", b"{\"hidden_size\": 384}"),
    ];
    layout.artifact("v1", &files);
    let registry = Registry::start();
    registry.push(place.path(), "v1", "test/model:v1");
    let peersync = Peersync::new();
    let image = format!("{}/test/model:v1", registry.address);
    for image in [image, layout.reference("v1")] {
        let mount = peersync.mount(&image, &[]);
        for (name, content) in files {
            assert_eq!(fs::read(mount.join(name)).expect(name), content, "{name}");
        }
        assert_eq!(read_tensor(&mount.join("model.safetensors")), read_tensor(&reference));
        mount.umount(&peersync);
    }
}

#[test]
fn onnx_opens_a_model_in_a_mounted_artifact() {
    needs_mounts!();
    let place = scratch();
    let file = place.path().join("model.onnx");
    if python(MAKE_ONNX, &file).is_none() {
        return;
    }
    let mut layout = Layout::create(&place.path().join("oci"));
    layout.artifact("v1", &[("onnx/model.onnx", &fs::read(&file).expect("model"))]);
    let peersync = Peersync::new();
    let mount = peersync.mount(&layout.reference("v1"), &[]);
    let given = python(RUN_ONNX, &mount.join("onnx/model.onnx"));
    assert_eq!(given, python(RUN_ONNX, &file));
    assert!(given.expect("output").starts_with("(1, 1024)"));
}

#[test]
fn a_title_that_leaves_the_root_is_refused() {
    needs_mounts!();
    let place = scratch();
    let mut layout = Layout::create(place.path());
    layout.artifact("v1", &[("../../escaped", b"x")]);
    let peersync = Peersync::new();
    let point = peersync.mount_point();
    let image = layout.reference("v1");
    let said = peersync.fails(&["mount", &image, &point.display().to_string()]);
    assert!(said.contains("title") || said.contains("path") || said.contains("escaped"), "{said}");
    assert!(!peersync.path("escaped").exists());
}

#[test]
fn the_lab_model_is_the_same_in_the_layer() {
    needs_mounts!();
    let peersync = Peersync::new();
    let image = format!("oci:{}:v1", lab_images().join("oci").display());
    let mount = peersync.mount(&image, &[]);
    let (_place, reference) = model();
    let given = fs::read(mount.join("models/model.safetensors")).expect("model");
    assert!(given == fs::read(reference).expect("reference"), "the same bytes");
}
