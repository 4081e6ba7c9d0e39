//! Limbeck's own operators: kernels on every engine against the reference evaluator on random shapes, and the functions
//! that define them where there are no kernels.
#![allow(missing_docs)]

mod maps;
#[path = "../../benches/common/mod.rs"]
mod nets;
mod products;

use limbeck::distill::{Net, Step};
use limbeck::graph::{Attr, Cx, Form, Graph, ImportOptions, LIMBECK};
use limbeck::runtime::{CompileOptions, Engine, Model, Program, engines, noise};
use limbeck::tensor::{DType, Tensor, TensorMap};

/// Largest difference, relative to the largest expected value.
const TOLERANCE: f64 = 1e-5;

/// A convolution and its gradients, spatial extents outermost first.
#[derive(Debug, Clone)]
struct Case {
    batch: usize,
    channels: [usize; 2],
    group: usize,
    input: Vec<usize>,
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    begin: Vec<usize>,
    end: Vec<usize>,
    bias: bool,
}

impl Case {
    /// A random case; `None` where the kernel is larger than the padded input.
    fn draw(number: u64) -> Option<Case> {
        let mut stream = noise::stream(1, number, "case");
        let mut pick = |options: &[usize]| options[stream.below(options.len())];
        let rank = pick(&[1, 2, 2, 2]);
        let group = pick(&[1, 1, 2, 3]);
        let mut list = |options: &[usize]| (0..rank).map(|_| pick(options)).collect::<Vec<_>>();
        let case = Case {
            input: list(&[1, 2, 5, 7, 8, 13]),
            kernel: list(&[1, 2, 3, 3, 5]),
            strides: list(&[1, 1, 2, 3]),
            dilations: list(&[1, 1, 2]),
            begin: list(&[0, 1, 2]),
            end: list(&[0, 1, 3]),
            batch: pick(&[1, 2, 5]),
            channels: [group * pick(&[1, 1, 3, 8]), group * pick(&[1, 2, 5, 17])],
            group,
            bias: pick(&[0, 1]) == 1,
        };
        case.output().map(|_| case)
    }

    fn output(&self) -> Option<Vec<usize>> {
        let along = |i: usize| {
            let padded = self.input[i] + self.begin[i] + self.end[i];
            let free = padded.checked_sub(self.dilations[i] * (self.kernel[i] - 1) + 1)?;
            Some(free / self.strides[i] + 1)
        };
        (0..self.input.len()).map(along).collect()
    }

    /// Inputs `x`, `w`, `gy` and `b` where there is a bias; outputs `y`, `gx`, `gw`.
    fn graph(&self) -> Graph {
        let cx = Cx::new("case", DType::F32);
        let output = self.output().unwrap();
        let [ins, outs] = self.channels;
        let x = cx.input("x", DType::F32, &[&[self.batch, ins], &self.input[..]].concat());
        let w = cx.input("w", DType::F32, &[&[outs, ins / self.group], &self.kernel[..]].concat());
        let gy = cx.input("gy", DType::F32, &[&[self.batch, outs], &output[..]].concat());
        let bias = self.bias.then(|| cx.input("b", DType::F32, &[outs]));
        let attrs: Vec<(&str, Attr)> = vec![
            ("strides", self.strides.clone().into()),
            ("dilations", self.dilations.clone().into()),
            ("pads", [&self.begin[..], &self.end].concat().into()),
            ("group", self.group.into()),
            ("kernel_shape", self.kernel.clone().into()),
        ];
        let with_extents = [&attrs[..], &[("input_shape", self.input.clone().into())]].concat();
        cx.output("y", cx.op_n("", "Conv", &[Some(x), Some(w), bias], &attrs, 1)[0]);
        cx.output("gx", cx.op_n(LIMBECK, "ConvGradInput", &[Some(w), Some(gy)], &with_extents, 1)[0]);
        cx.output("gw", cx.op_n(LIMBECK, "ConvGradWeight", &[Some(x), Some(gy)], &attrs, 1)[0]);
        cx.finish().unwrap()
    }
}

/// Uniform values in -1..1 for every input.
fn feeds(graph: &Graph) -> TensorMap {
    let fill = |&id: &_| {
        let shape = graph.shape(id).unwrap();
        let mut stream = noise::stream(2, 0, graph.name_of(id));
        let values = (0..shape.iter().product()).map(|_| 2.0 * stream.uniform() as f32 - 1.0).collect();
        (graph.name_of(id).to_owned(), Tensor::new(shape, values).unwrap())
    };
    graph.inputs.iter().map(fill).collect()
}

fn compile(engine: &dyn Engine, bytes: impl Into<limbeck::tensor::Bytes>, threads: usize) -> Box<dyn Program> {
    let options = CompileOptions { threads, ..CompileOptions::default() };
    engine.compile(&Model::new(bytes), &options).unwrap()
}

fn infer(program: &dyn Program, feeds: &TensorMap) -> TensorMap {
    program.infer(&feeds.iter().map(|(n, t)| (n.as_str(), t)).collect::<Vec<_>>()).unwrap()
}

/// The file with Limbeck's domain under another name of the same length: no engine has kernels for that.
fn without_kernels(bytes: &[u8]) -> Vec<u8> {
    let (own, other) = (LIMBECK.as_bytes(), b"ai.nowhere");
    assert_eq!(own.len(), other.len());
    let mut bytes = bytes.to_vec();
    let places: Vec<usize> = (0..bytes.len() - own.len()).filter(|&at| bytes[at..].starts_with(own)).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|at| bytes[at..at + own.len()].copy_from_slice(other));
    bytes
}

#[track_caller]
fn assert_close(what: &str, got: &TensorMap, want: &TensorMap) {
    assert!(got.keys().eq(want.keys()), "{what}");
    for (name, want) in want {
        assert_eq!(got[name].shape(), want.shape(), "{what}: {name}");
        let (got, want) = (got[name].to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
        let scale = want.iter().fold(1e-30, |m: f64, w| m.max(w.abs()));
        let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max) / scale;
        let finite = got.iter().all(|g| g.is_finite());
        assert!(finite && worst <= TOLERANCE, "{what}: {name} differs by {worst:e}");
    }
}

#[test]
fn random_convolutions_agree_with_the_reference_with_and_without_kernels() {
    for (number, case) in (0..60).filter_map(|n| Some((n, Case::draw(n)?))) {
        let graph = case.graph();
        let feeds = feeds(&graph);
        let expected = graph.evaluate(&feeds).unwrap();
        let bytes = graph.lowered(Form::Fused).unwrap().to_bytes().unwrap();
        let mut inlined = Graph::from_bytes(bytes.clone(), None).unwrap();
        assert_eq!(inlined.import(&ImportOptions::default()).unwrap().functions, 3);
        let inlined = inlined.to_bytes().unwrap();
        for engine in engines() {
            let what = |how: &str| format!("{}, case {number}, {how}: {case:?}", engine.name());
            let one = infer(&*compile(engine, bytes.clone(), 1), &feeds);
            assert_close(&what("1 thread"), &one, &expected);
            let two = compile(engine, bytes.clone(), 2);
            let first = infer(&*two, &feeds);
            assert_close(&what("2 threads"), &first, &one);
            assert_eq!(infer(&*two, &feeds), first, "{}", what("a second run"));
            assert_close(&what("functions inlined"), &infer(&*compile(engine, inlined.clone(), 1), &feeds), &expected);
            // tract does not run functions.
            if engine.name() == "ort" {
                let stock = compile(engine, without_kernels(&bytes), 1);
                assert_close(&what("functions"), &infer(&*stock, &feeds), &expected);
            }
        }
    }
}

#[test]
fn one_program_may_run_on_several_threads_at_once() {
    let case = (0..).find_map(|n| Case::draw(n).filter(|c| c.batch == 5 && c.group == 1)).unwrap();
    let graph = case.graph();
    let feeds = feeds(&graph);
    let bytes = graph.lowered(Form::Fused).unwrap().to_bytes().unwrap();
    for engine in engines() {
        let program = compile(engine, bytes.clone(), 2);
        let expected = infer(&*program, &feeds);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| assert_eq!(infer(&*program, &feeds), expected)));
            }
        });
    }
}

#[test]
fn equal_and_unused_nodes_have_kernels_or_need_none() {
    let cx = Cx::new("twice", DType::F32);
    let x = cx.input("x", DType::F32, &[1, 2, 4]);
    let w = cx.constant(Tensor::new([2, 2, 1], vec![1f32, 2.0, 3.0, 4.0]).unwrap());
    let fixed = cx.constant(Tensor::new([1, 2, 4], vec![1f32; 8]).unwrap());
    cx.output("y", cx.op("Conv", &[x, w], &[]));
    cx.output("z", cx.op("Conv", &[x, w], &[]) + 1.0);
    cx.output("constant", cx.op("Conv", &[fixed, w], &[]));
    let graph = cx.finish().unwrap();
    let feeds = feeds(&graph);
    let expected = graph.evaluate(&feeds).unwrap();
    let mut fused = graph.lowered(Form::Fused).unwrap();
    let kept = fused.outputs.iter().copied().filter(|&o| fused.name_of(o) != "z").collect();
    fused.outputs = kept;
    let expected_part = expected.iter().filter(|(n, _)| *n != "z").map(|(n, t)| (n.clone(), t.clone())).collect();
    for engine in engines() {
        let whole = graph.lowered(Form::Fused).unwrap().to_bytes().unwrap();
        assert_close(engine.name(), &infer(&*compile(engine, whole, 1), &feeds), &expected);
        assert_close(engine.name(), &infer(&*compile(engine, fused.to_bytes().unwrap(), 1), &feeds), &expected_part);
    }
}

#[test]
fn nodes_that_kernels_refuse_are_errors_at_load() {
    let cx = Cx::new("g", DType::F32);
    let x = cx.input("x", DType::F32, &[1, 2, 4]);
    let w = cx.input("w", DType::F32, &[2, 2, 1]);
    cx.output("y", cx.op("Conv", &[x, w], &[]));
    let fused = cx.finish().unwrap().lowered(Form::Fused).unwrap();
    let refused = |change: &dyn Fn(&mut limbeck::graph::Node)| {
        let mut graph = fused.clone();
        let id = graph.node_ids()[0];
        change(graph.node_mut(id));
        let bytes = graph.to_bytes().unwrap();
        engines().into_iter().map(move |engine| {
            let error = engine.compile(&Model::new(bytes.clone()), &CompileOptions::default()).err();
            format!("{}: {}", engine.name(), error.map_or("no error".into(), |e| e.to_string()))
        })
    };
    for said in refused(&|node| node.op = "FusedNothing".into()) {
        assert!(said.contains("ai.limbeck.FusedNothing"), "{said}");
    }
    for said in refused(&|node| _ = node.attrs.insert("auto_pad".into(), "SAME_UPPER".into())) {
        assert!(said.contains("auto_pad is not supported"), "{said}");
    }
    for said in refused(&|node| _ = node.attrs.insert("group".into(), Attr::Int(-1))) {
        assert!(said.contains("the attribute group is negative"), "{said}");
    }
    for said in refused(&|node| node.inputs.truncate(1)) {
        assert!(said.contains("takes 2 to 3 inputs, got 1"), "{said}");
    }
}

/// The state after one run of a step, and its loss.
fn trained(engine: &dyn Engine, model: &Model, step: &Step, batch: &TensorMap, threads: usize) -> (TensorMap, f64) {
    let options = CompileOptions { threads, ..CompileOptions::default() };
    let program = engine.compile(model, &options).unwrap();
    let mut store = engine.new_store();
    step.initial.iter().for_each(|(name, value)| store.insert(name, value).unwrap());
    let rate = Tensor::scalar(0.01f32);
    let mut feeds: Vec<(&str, &Tensor)> = batch.iter().map(|(n, t)| (n.as_str(), t)).collect();
    feeds.push(("lr", &rate));
    let loss = program.run(&mut store, &feeds).unwrap()["loss"].to_f64_vec().unwrap()[0];
    (step.initial.keys().map(|name| (name.clone(), store.get(name).unwrap())).collect(), loss)
}

/// The state after one run of a step by the reference evaluator, which sums in float64, and its loss.
fn reference(step: &Step, batch: &TensorMap) -> (TensorMap, f64) {
    let mut feeds = batch.clone();
    feeds.extend(step.initial.clone());
    feeds.insert("lr".into(), Tensor::scalar(0.01f32));
    let values = step.graph.evaluate(&feeds).unwrap();
    let state = step.manifest.state.iter().map(|entry| (entry.name.clone(), values[&entry.output].clone()));
    (state.collect(), values["loss"].to_f64_vec().unwrap()[0])
}

/// ResNet-8 with Tanh in place of ReLU: a value near 0 may round to either side of it, and then the gradients of two correct
/// runs differ by more than rounding.
#[test]
fn a_train_step_is_the_same_in_every_form() {
    let case = nets::cases().unwrap().into_iter().find(|c| c.name == "resnet8").unwrap();
    let mut graph = case.net.graph().clone();
    for id in graph.node_ids() {
        if graph.node(id).is("", "Relu") {
            graph.node_mut(id).op = "Tanh".into();
        }
    }
    let case = nets::Case { net: Net::from_graph(graph).unwrap(), ..case };
    let step = nets::train_step(&case).unwrap();
    let batch = nets::batch(&case).unwrap();
    let [portable, fused] = [Form::Portable, Form::Fused].map(|form| {
        let step = Step { graph: step.graph.lowered(form).unwrap(), ..step.clone() };
        step.model().unwrap()
    });
    let stock = Model { bytes: without_kernels(&fused.bytes).into(), ..fused.clone() };
    let (want, want_loss) = reference(&step, &batch);
    for engine in engines() {
        let mut forms =
            vec![("portable", &portable, 1), ("kernels, 1 thread", &fused, 1), ("kernels, 2 threads", &fused, 2)];
        // tract does not run functions.
        forms.extend((engine.name() == "ort").then_some(("functions", &stock, 1)));
        for (what, model, threads) in forms {
            let (got, loss) = trained(engine, model, &step, &batch, threads);
            let what = format!("{}, {what}", engine.name());
            assert!((loss - want_loss).abs() <= 1e-6 * want_loss.abs(), "{what}: {loss} is not {want_loss}");
            assert_close(&what, &got, &want);
        }
    }
}
