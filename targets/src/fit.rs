//! Does a model fit a board, on which engine, in which precision, and how fast can it be at best?

use serde::{Deserialize, Serialize};

use crate::{Activations, Board, Engine, Precision, Provider, TRACT_OPS};

/// What a model costs, counted from its graph.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCost {
    /// Elements of all weights.
    pub params: u64,
    /// Bytes of all weights as stored.
    pub weight_bytes: u64,
    /// Bytes of all intermediate values that live at once, at worst, for one run.
    pub peak_activation_bytes: u64,
    /// Multiply-and-adds of one run.
    pub macs: u64,
    /// Distinct op types; with its domain and a dot where that is not ONNX's own (`com.microsoft.QGemm`).
    pub ops: Vec<String>,
    /// Nodes that compute in floating point.
    pub float_nodes: usize,
    /// Nodes that compute in integers: QLinearConv, QLinearMatMul, ConvInteger, MatMulInteger and their like.
    pub int_nodes: usize,
    /// Whether a dimension of some input is unknown or named.
    pub dynamic: bool,
}

/// The verdict on a model and a board.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Fit {
    /// Whether the model can run: an engine takes it, and it stays within the memory budget.
    pub ok: bool,
    /// The engine to use: the board's most preferred one that takes every op.
    pub engine: Option<Engine>,
    /// Where that engine computes, for engines that offer a choice.
    pub provider: Option<Provider>,
    /// What the model computes in as it is.
    pub precision: Precision,
    /// Threads to give the engine.
    pub threads: usize,
    /// Twice the weights (the file, and the engine's packed copy) and the activations.
    pub needed_bytes: u64,
    /// Two operations a multiply-and-add over the board's theoretical peak: no run can be faster, most are several
    /// times slower. Milliseconds; 0 where no engine takes the model.
    pub lower_bound_ms: f64,
    /// What stops the model from running there; empty if `ok`.
    pub reasons: Vec<String>,
    /// What to know or to improve, each with its remedy.
    pub warnings: Vec<String>,
}

/// What to do about ops that tract lacks, for those that have a remedy of their own.
const REMEDIES: &[(&str, &str)] = &[
    ("MaxUnpool", "use ScatterND"),
    ("NegativeLogLikelihoodLoss", "use LogSoftmax and OneHot"),
    ("SoftmaxCrossEntropyLoss", "use LogSoftmax and OneHot"),
    ("RandomUniformLike", "make the random tensor an input"),
    ("RandomNormalLike", "make the random tensor an input"),
];

/// Ops that compute in integers on tract; a DequantizeLinear around any other op makes it run in f32.
const INTEGER_OPS: &[&str] = &["QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"];

/// Judges a model against a board.
pub fn fits(board: &Board, cost: &ModelCost) -> Fit {
    let mut reasons = Vec::new();
    let mut warnings = Vec::new();

    let mut choice = None;
    for candidate in &board.engines {
        let gaps = gaps(candidate.name, &cost.ops);
        match &candidate.unavailable {
            Some(reason) => warnings.push(format!("{} is not an option: {reason}", candidate.name)),
            None if !gaps.is_empty() => reasons.push(format!("{} lacks {}", candidate.name, gaps.join("; "))),
            None if choice.is_none() => choice = Some(candidate),
            None => {}
        }
    }
    if choice.is_some() {
        warnings.append(&mut reasons);
    }
    let engine = choice.map(|choice| choice.name);
    let provider = choice.and_then(|choice| choice.providers.first().copied());
    let on_gpu = provider.is_some_and(|provider| provider != Provider::Cpu);

    let needed_bytes = cost.weight_bytes.saturating_mul(2).saturating_add(cost.peak_activation_bytes);
    let own_memory = board.gpu.as_ref().and_then(|gpu| gpu.memory_bytes).filter(|_| on_gpu);
    for (what, limit) in [("the board's budget", Some(board.budget_bytes)), ("the accelerator's memory", own_memory)] {
        let Some(limit) = limit else { continue };
        if needed_bytes > limit {
            let (needed, limit) = (mib(needed_bytes), mib(limit));
            reasons.push(format!("needs {needed} MiB, {what} is {limit} MiB: prune, quantise or take a smaller batch"));
        } else if needed_bytes > limit / 2 {
            let (needed, limit) = (mib(needed_bytes), mib(limit));
            warnings.push(format!("needs {needed} MiB of {limit} MiB ({what}): little is left to learn with"));
        }
    }

    let precision = precision(cost);
    warnings.extend(precision_advice(board, cost, engine, precision));
    if cost.dynamic && engine == Some(Engine::Tract) {
        warnings.push("tract wants concrete dimensions: bind the named ones when the model is compiled".to_owned());
    }

    let peak = match board.gpu_peak_flops().filter(|_| on_gpu) {
        Some(peak) => peak,
        None => board.cpu_peak_flops(board.threads),
    } * lanes(board, precision);
    let lower_bound_ms = if engine.is_some() { 2.0 * cost.macs as f64 / peak * 1e3 } else { 0.0 };
    Fit {
        ok: reasons.is_empty(),
        engine,
        provider,
        precision,
        threads: board.threads,
        needed_bytes,
        lower_bound_ms,
        reasons,
        warnings,
    }
}

/// The ops that `engine` lacks, each with its remedy.
fn gaps(engine: Engine, ops: &[String]) -> Vec<String> {
    if engine != Engine::Tract {
        return Vec::new();
    }
    let gap = |op: &String| {
        let (domain, bare) = op.rsplit_once('.').unwrap_or(("ai.onnx", op));
        let known =
            matches!(domain, "ai.onnx" | "ai.onnx.ml" | "com.microsoft") && TRACT_OPS.binary_search(&bare).is_ok();
        if known || domain == "ai.limbeck" {
            return None;
        }
        Some(match REMEDIES.iter().find(|(name, _)| *name == bare) {
            _ if domain != "ai.onnx" => format!("{op} (write it in ONNX's own ops, without domain {domain})"),
            Some((name, remedy)) => format!("{name} ({remedy})"),
            None => format!("{bare} (write it in operators that tract has, or take a board with ort)"),
        })
    };
    ops.iter().filter_map(gap).collect()
}

/// What the model computes in: int8 if any node does, f16 if its weights take two bytes or less an element.
fn precision(cost: &ModelCost) -> Precision {
    if cost.int_nodes > 0 {
        Precision::Int8
    } else if cost.params > 0 && cost.weight_bytes <= cost.params.saturating_mul(5) / 2 {
        Precision::F16
    } else {
        Precision::F32
    }
}

/// What to know about the model's precision on this board and engine.
fn precision_advice(board: &Board, cost: &ModelCost, engine: Option<Engine>, precision: Precision) -> Vec<String> {
    let mut advice = Vec::new();
    let has = |names: &[&str]| cost.ops.iter().any(|op| names.contains(&op.as_str()));
    let profile = if engine == Some(Engine::Ort) { "server" } else { "tract" };
    let activations = board.precision.activations;
    if engine == Some(Engine::Tract) && has(&["DequantizeLinear"]) && !has(INTEGER_OPS) {
        advice.push("DequantizeLinear pairs run in f32 on tract: export with the profile `tract`".to_owned());
    }
    match precision {
        Precision::Int8 if !board.precision.preferred.contains(&Precision::Int8) => {
            advice.push("int8 does not help on this board: ship the float model".to_owned());
        }
        Precision::Int8 => {
            if board.precision.reduce_range {
                advice.push(
                    "the CPU lacks int8 dot products: weights must stay within [-64, 64] (reduce_range), and int8 can \
                     be slower than float"
                        .to_owned(),
                );
            }
            if cost.float_nodes > 0 {
                let nodes = cost.float_nodes + cost.int_nodes;
                advice.push(format!("{} of {nodes} nodes stay float", cost.float_nodes));
            }
        }
        Precision::F16 if !board.precision.preferred.contains(&Precision::F16) => {
            advice.push("f16 only saves storage here: the CPU computes it in f32".to_owned());
        }
        _ => {}
    }
    let best = board.precision.preferred.first().copied();
    match best.filter(|&best| best != precision && precision != Precision::Int8) {
        Some(Precision::Int8) => {
            let range = if board.precision.reduce_range { ", reduce_range" } else { "" };
            let bits = if activations == Activations::U8 { "u8" } else { "s8" };
            advice.push(format!("int8 suits this board: quantise with profile `{profile}`, {bits} activations{range}"));
        }
        Some(Precision::F16) => advice.push("f16 suits this board: export with half precision".to_owned()),
        _ => {}
    }
    advice
}

/// How many more lanes than f32 a precision can fill at most: twice for f16 where the board has its arithmetic, four
/// times for int8.
fn lanes(board: &Board, precision: Precision) -> f64 {
    match precision {
        Precision::Int8 => 4.0,
        Precision::F16 if board.precision.preferred.contains(&Precision::F16) => 2.0,
        _ => 1.0,
    }
}

/// Bytes in MiB, rounded up.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{boards, find};

    fn resnet8() -> ModelCost {
        ModelCost {
            params: 78_000,
            weight_bytes: 312_000,
            peak_activation_bytes: 131_072,
            macs: 12_500_000,
            ops: ["Conv", "Relu", "Add", "GlobalAveragePool", "Gemm"].map(String::from).to_vec(),
            float_nodes: 22,
            ..ModelCost::default()
        }
    }

    #[test]
    fn a_tiny_model_fits_every_board_on_its_first_usable_engine() {
        for board in boards() {
            let fit = fits(board, &resnet8());
            let first = board.engines.iter().find(|engine| engine.unavailable.is_none()).map(|engine| engine.name);
            assert_eq!((fit.ok, fit.engine), (true, first), "{}: {:?}", board.name, fit.reasons);
            assert!(fit.lower_bound_ms > 0.0 && fit.lower_bound_ms < 5.0, "{}: {}", board.name, fit.lower_bound_ms);
            assert!((1..=board.cpu.cores).contains(&fit.threads), "{}", board.name);
        }
    }

    #[test]
    fn the_bound_is_operations_over_peak() {
        let fit = fits(find("raspberry-pi-3").unwrap(), &resnet8());
        // 25e6 operations / (4 cores x 1.2e9 Hz x 8)
        assert!((fit.lower_bound_ms - 25e6 / 38.4e9 * 1e3).abs() < 1e-12, "{}", fit.lower_bound_ms);
        let int8 = fits(find("raspberry-pi-3").unwrap(), &ModelCost { int_nodes: 10, ..resnet8() });
        assert!((int8.lower_bound_ms * 4.0 - fit.lower_bound_ms).abs() < 1e-12);
        let gpu = fits(find("x86-cuda-server").unwrap(), &resnet8());
        assert_eq!(gpu.provider, Some(Provider::Cuda));
        assert!((gpu.lower_bound_ms - 25e6 / (58.0 * 2.04e9 * 512.0) * 1e3).abs() < 1e-12);
    }

    #[test]
    fn too_large_a_model_is_refused_everywhere_with_both_sizes() {
        let cost = ModelCost { params: 25 << 30, weight_bytes: 100 << 30, ..resnet8() };
        for board in boards() {
            let fit = fits(board, &cost);
            assert!(!fit.ok, "{}", board.name);
            let budget = format!("{} MiB", board.budget_bytes >> 20);
            assert!(
                fit.reasons[0].contains("needs 204801 MiB") && fit.reasons[0].contains(&budget),
                "{:?}",
                fit.reasons
            );
        }
        let endless = fits(&boards()[0], &ModelCost { weight_bytes: u64::MAX, ..resnet8() });
        assert!(!endless.ok && endless.needed_bytes == u64::MAX);
    }

    #[test]
    fn memory_counts_weights_twice() {
        let board = find("raspberry-pi-zero-2w").unwrap();
        let at = |weight_bytes| fits(board, &ModelCost { weight_bytes, peak_activation_bytes: 0, ..resnet8() });
        assert!(at(board.budget_bytes / 2).ok);
        assert!(!at(board.budget_bytes / 2 + 1).ok);
        assert!(at(board.budget_bytes / 2).warnings.iter().any(|w| w.contains("little is left")));
    }

    #[test]
    fn an_op_that_tract_lacks_moves_the_model_to_ort_or_stops_it() {
        for op in ["MaxUnpool", "com.microsoft.QGemm", "DeformConv", "com.microsoft.Conv2", "Convolution"] {
            let mut cost = resnet8();
            cost.ops.push(op.to_owned());
            for board in boards() {
                let fit = fits(board, &cost);
                let ort = board.engines.iter().any(|e| e.name == Engine::Ort && e.unavailable.is_none());
                assert_eq!((fit.ok, fit.engine), (ort, ort.then_some(Engine::Ort)), "{} {op}", board.name);
                let told = fit.reasons.iter().chain(&fit.warnings).any(|line| line.contains(op));
                assert!(told, "{}: {fit:?}", board.name);
            }
        }
        let fused = ModelCost { ops: vec!["ai.limbeck.ConvGrad".into(), "ai.onnx.Conv".into()], ..resnet8() };
        assert_eq!(fits(find("raspberry-pi-4").unwrap(), &fused).engine, Some(Engine::Tract));
    }

    #[test]
    fn an_unavailable_engine_is_told_with_its_reason() {
        let fit = fits(find("raspberry-pi-2").unwrap(), &resnet8());
        assert_eq!(fit.engine, Some(Engine::Tract));
        assert!(fit.warnings.iter().any(|w| w.contains("ort is not an option") && w.contains("armv7")), "{fit:?}");
    }

    #[test]
    fn advice_follows_board_engine_and_precision() {
        let told = |board: &str, cost: &ModelCost, words: &str| {
            let fit = fits(find(board).unwrap(), cost);
            assert!(
                fit.warnings.iter().any(|line| line.contains(words)),
                "{board}: {words:?} not in {:?}",
                fit.warnings
            );
        };
        let int8 = ModelCost { int_nodes: 10, float_nodes: 3, weight_bytes: 78_000, ..resnet8() };
        let half = ModelCost { weight_bytes: 156_000, ..resnet8() };
        let mut qdq = resnet8();
        qdq.ops.push("DequantizeLinear".to_owned());
        told("raspberry-pi-4", &resnet8(), "profile `tract`, s8 activations");
        told("x86-vnni-server", &resnet8(), "profile `server`, u8 activations");
        told("x86-server", &int8, "[-64, 64]");
        told("raspberry-pi-5", &int8, "3 of 13 nodes stay float");
        told("raspberry-pi-4", &half, "f16 only saves storage");
        told("raspberry-pi-4", &qdq, "run in f32 on tract");
        told("raspberry-pi-4", &ModelCost { dynamic: true, ..resnet8() }, "concrete dimensions");
        assert_eq!(fits(find("raspberry-pi-5").unwrap(), &half).precision, Precision::F16);
        assert!(fits(find("x86-server").unwrap(), &resnet8()).warnings.is_empty());
    }
}
