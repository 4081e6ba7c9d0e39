//! Data for training: the [`Dataset`] trait, tensors in memory, and readers for npy, safetensors, IDX and folders of
//! images. Values enter as stated: integers are converted to f32 and scaled by the reader's `scale`.

use crate::DistillError;
use limbeck_runtime::noise;
use limbeck_tensor::{DType, Tensor, TensorMap, io, map_file};
use std::path::Path;

/// Something that gives batches of named rows.
pub trait Dataset: Sync {
    /// Number of samples.
    fn len(&self) -> usize;

    /// The samples at these indices as named tensors `[indices.len(), ...]`.
    fn batch(&self, indices: &[usize]) -> Result<TensorMap, DistillError>;

    /// True when there is no sample.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Named tensors in memory whose first axis counts samples.
#[derive(Debug, Clone, Default)]
pub struct Arrays {
    tensors: TensorMap,
    len: usize,
}

pub(crate) fn data_error(source_name: impl Into<String>, reason: impl Into<String>) -> DistillError {
    DistillError::Data { source_name: source_name.into(), reason: reason.into() }
}

impl Arrays {
    /// Tensors that agree in their first extent and hold finite numbers.
    pub fn new(tensors: TensorMap) -> Result<Arrays, DistillError> {
        let mut len = None;
        for (name, tensor) in &tensors {
            let Some(&n) = tensor.shape().first() else {
                return Err(data_error(name, "has rank 0; the first axis must count samples"));
            };
            if *len.get_or_insert(n) != n {
                return Err(data_error(name, format!("has {n} samples where others have {}", len.unwrap_or(0))));
            }
            if let Some(row) = first_not_finite(tensor) {
                return Err(data_error(name, format!("sample {row} holds NaN or infinity; clean the data first")));
            }
        }
        Ok(Arrays { tensors, len: len.unwrap_or(0) })
    }

    /// One of the tensors.
    pub fn get(&self, name: &str) -> Result<&Tensor, DistillError> {
        self.tensors.get(name).ok_or_else(|| {
            data_error(name, format!("there is no such field; there are {:?}", self.tensors.keys().collect::<Vec<_>>()))
        })
    }

    /// Adds or replaces a field: stored teacher outputs, for instance.
    pub fn with(mut self, name: &str, tensor: Tensor) -> Result<Arrays, DistillError> {
        self.tensors.insert(name.into(), tensor);
        Arrays::new(self.tensors)
    }

    /// A part of the samples, in the given order.
    pub fn select(&self, indices: &[usize]) -> Result<Arrays, DistillError> {
        Arrays::new(self.batch(indices)?)
    }

    /// All fields.
    pub fn tensors(&self) -> &TensorMap {
        &self.tensors
    }
}

fn first_not_finite(tensor: &Tensor) -> Option<usize> {
    if tensor.all_finite() {
        return None;
    }
    let row = tensor.shape()[1..].iter().product::<usize>().max(1);
    let values = tensor.to_f64_vec().ok()?;
    values.iter().position(|v| !v.is_finite()).map(|i| i / row)
}

impl Dataset for Arrays {
    fn len(&self) -> usize {
        self.len
    }

    fn batch(&self, indices: &[usize]) -> Result<TensorMap, DistillError> {
        self.tensors.iter().map(|(name, t)| Ok((name.clone(), gather_rows(t, indices)?))).collect()
    }
}

/// Rows of a tensor picked by index.
pub fn gather_rows(tensor: &Tensor, indices: &[usize]) -> Result<Tensor, DistillError> {
    let Some((&n, rest)) = tensor.shape().split_first() else {
        return Err(data_error("tensor", "has rank 0 and no rows"));
    };
    if let Some(&bad) = indices.iter().find(|&&i| i >= n) {
        return Err(data_error("tensor", format!("sample {bad} was asked for, but there are {n}")));
    }
    let row = tensor.byte_len().checked_div(n).unwrap_or(0);
    let bytes = tensor.bytes();
    let mut picked = Vec::with_capacity(row * indices.len());
    for &i in indices {
        picked.extend_from_slice(&bytes[i * row..(i + 1) * row]);
    }
    let mut shape = vec![indices.len()];
    shape.extend_from_slice(rest);
    Ok(Tensor::from_bytes(tensor.dtype(), shape, picked.into())?.aligned())
}

/// That labels are integers in `0..classes`; the error names the field, the first sample that is not, and its label.
pub fn check_labels(field: &str, labels: &Tensor, classes: usize) -> Result<(), DistillError> {
    check_labels_of(field, labels, classes, |row| row)
}

/// As [`check_labels`], with the sample that a row holds.
pub(crate) fn check_labels_of(
    field: &str,
    labels: &Tensor,
    classes: usize,
    sample: impl Fn(usize) -> usize,
) -> Result<(), DistillError> {
    if labels.dtype().is_float() {
        return Err(data_error(field, format!("labels must be integers, these are {}", labels.dtype())));
    }
    let values = labels.to_i64_vec()?;
    let wrong = values.iter().position(|&v| usize::try_from(v).map_or(true, |v| v >= classes));
    let Some(i) = wrong else { return Ok(()) };
    let row = i / labels.shape().iter().skip(1).product::<usize>().max(1);
    Err(data_error(field, format!("sample {} has label {}, outside 0..{classes}", sample(row), values[i])))
}

/// Reads a field from an npy file; integers become f32 times `scale` when a scale is given.
pub fn read_npy(path: &Path, scale: Option<f64>) -> Result<Tensor, DistillError> {
    scaled(io::read_npy(path)?, scale)
}

/// Reads all fields of a safetensors file.
pub fn read_safetensors(path: &Path) -> Result<Arrays, DistillError> {
    Arrays::new(io::read_safetensors(path)?)
}

fn scaled(tensor: Tensor, scale: Option<f64>) -> Result<Tensor, DistillError> {
    let Some(scale) = scale else { return Ok(tensor) };
    let values: Vec<f32> = tensor.to_f64_vec()?.into_iter().map(|v| (v * scale) as f32).collect();
    Ok(Tensor::new(tensor.shape().to_vec(), values)?)
}

/// Reads an IDX file (the format of MNIST: magic 0 0 type rank, big-endian extents, data). u8 data only, which is
/// all that the published sets use; becomes f32 times `scale` when a scale is given.
pub fn read_idx(path: &Path, scale: Option<f64>) -> Result<Tensor, DistillError> {
    let name = path.display().to_string();
    let bytes = map_file(path)?;
    let [0, 0, kind, rank, rest @ ..] = &bytes[..] else {
        return Err(data_error(name, "is not an IDX file (it must start with two zero bytes)"));
    };
    if *kind != 8 {
        return Err(data_error(name, format!("holds IDX type {kind:#x}; only unsigned bytes (0x8) are read")));
    }
    let header = 4 * usize::from(*rank);
    let Some(extents) = rest.get(..header) else {
        return Err(data_error(name, "ends inside its header"));
    };
    let shape: Vec<usize> =
        extents.chunks_exact(4).map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]]) as usize).collect();
    let tensor = Tensor::from_bytes(DType::U8, shape, bytes.slice(4 + header..))
        .map_err(|e| data_error(name, format!("header and data disagree: {e}")))?;
    scaled(tensor, scale)
}

/// Reads a folder with one sub-folder of PNG or JPEG images per class, classes and files in name order. Gives `x`
/// `[n, channels, height, width]` f32 in 0..=1 and `y` `[n]` int64, with the class names. `channels` is 1 (luma) or
/// 3 (RGB); every image must have the given size.
pub fn read_image_folder(
    folder: &Path,
    channels: usize,
    height: u32,
    width: u32,
) -> Result<(Arrays, Vec<String>), DistillError> {
    let listing = |dir: &Path| -> Result<Vec<std::path::PathBuf>, DistillError> {
        let entries = std::fs::read_dir(dir).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
        let mut paths: Vec<_> = entries.map_err(|e| data_error(dir.display().to_string(), e.to_string()))?;
        paths.sort();
        Ok(paths)
    };
    if channels != 1 && channels != 3 {
        return Err(data_error(folder.display().to_string(), format!("{channels} channels: 1 or 3 are read")));
    }
    let classes: Vec<_> = listing(folder)?.into_iter().filter(|p| p.is_dir()).collect();
    let (mut x, mut y, mut names) = (vec![], vec![], vec![]);
    for (label, class) in classes.iter().enumerate() {
        names.push(class.file_name().unwrap_or_default().to_string_lossy().into_owned());
        for file in listing(class)?.into_iter().filter(|p| p.is_file()) {
            let name = file.display().to_string();
            let image = image::open(&file).map_err(|e| data_error(&name, e.to_string()))?;
            if (image.height(), image.width()) != (height, width) {
                let got = format!("{}x{}", image.height(), image.width());
                return Err(data_error(name, format!("is {got} pixels, but {height}x{width} are needed")));
            }
            let pixels = if channels == 1 { image.to_luma8().into_raw() } else { image.to_rgb8().into_raw() };
            for c in 0..channels {
                x.extend(pixels.iter().skip(c).step_by(channels).map(|&p| f32::from(p) / 255.0));
            }
            y.push(label as i64);
        }
    }
    if y.is_empty() {
        return Err(data_error(folder.display().to_string(), "holds no class folder with images"));
    }
    let shape = [y.len(), channels, height as usize, width as usize];
    let mut tensors = TensorMap::new();
    tensors.insert("x".into(), Tensor::new(shape, x)?);
    tensors.insert("y".into(), Tensor::new([y.len()], y)?);
    Ok((Arrays::new(tensors)?, names))
}

/// Batches of one epoch: indices in seeded order, and a weight per row. The last batch is filled with samples from
/// the start of the order, whose weight is 0: a step must weigh its rows, in its losses and where it normalises by the
/// batch's statistics (as [`crate::StepBuilder::apply`] does).
pub fn epoch_batches(len: usize, batch: usize, seed: u64, epoch: u64) -> Vec<(Vec<usize>, Vec<f32>)> {
    let order = noise::stream(seed, epoch, "shuffle").permutation(len);
    (0..len.div_ceil(batch.max(1)))
        .map(|b| {
            let indices = (0..batch).map(|i| order[(b * batch + i) % len]).collect();
            let weights = (0..batch).map(|i| if b * batch + i < len { 1.0 } else { 0.0 }).collect();
            (indices, weights)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_counts_every_sample_once() {
        let mut seen = vec![0.0; 10];
        for (indices, weights) in epoch_batches(10, 4, 3, 1) {
            assert_eq!((indices.len(), weights.len()), (4, 4));
            for (i, w) in indices.iter().zip(weights) {
                seen[*i] += w;
            }
        }
        assert_eq!(seen, vec![1.0; 10]);
        assert_ne!(epoch_batches(10, 4, 3, 1), epoch_batches(10, 4, 3, 2));
    }

    #[test]
    fn idx_is_read_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.idx");
        std::fs::write(&path, [0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 2, 0, 51, 102, 255]).unwrap();
        let t = read_idx(&path, Some(1.0 / 255.0)).unwrap();
        assert_eq!((t.shape(), t.to_vec::<f32>().unwrap()), (&[2, 2][..], vec![0.0, 0.2, 0.4, 1.0]));
        std::fs::write(&path, [0, 0, 8, 2, 0, 0, 0, 9, 0, 0, 0, 2, 0, 51]).unwrap();
        assert!(read_idx(&path, None).unwrap_err().to_string().contains("t.idx"));
    }

    #[test]
    fn image_folders_give_classes_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for (class, value) in [("cat", 0u8), ("dog", 255)] {
            std::fs::create_dir(dir.path().join(class)).unwrap();
            image::GrayImage::from_pixel(3, 2, image::Luma([value]))
                .save(dir.path().join(class).join("a.png"))
                .unwrap();
        }
        let (data, names) = read_image_folder(dir.path(), 1, 2, 3).unwrap();
        assert_eq!(names, ["cat", "dog"]);
        assert_eq!(data.get("x").unwrap().shape(), [2, 1, 2, 3]);
        assert_eq!(data.get("y").unwrap().to_vec::<i64>().unwrap(), [0, 1]);
        assert_eq!(data.get("x").unwrap().to_vec::<f32>().unwrap()[6..], [1.0; 6]);
        assert!(read_image_folder(dir.path(), 1, 8, 8).unwrap_err().to_string().contains("2x3"));
    }

    #[test]
    fn labels_out_of_range_are_named() {
        let labels = |values: Vec<i64>| Tensor::new([values.len() / 2, 2], values).unwrap();
        assert!(check_labels("y", &labels(vec![0, 9, 3, 1]), 10).is_ok());
        for (bad, text) in [(10, "label 10"), (-1, "label -1")] {
            let error = check_labels("y", &labels(vec![0, 9, 3, bad]), 10).unwrap_err().to_string();
            assert!(["data y", "sample 1", text, "0..10"].iter().all(|part| error.contains(part)), "{error}");
        }
        assert!(check_labels("y", &Tensor::scalar(1f32), 10).unwrap_err().to_string().contains("integers"));
    }

    #[test]
    fn nan_in_data_is_named() {
        let mut t = TensorMap::new();
        t.insert("x".into(), Tensor::new([2, 2], vec![0f32, 1.0, f32::NAN, 0.0]).unwrap());
        let error = Arrays::new(t).unwrap_err().to_string();
        assert!(error.contains("'x'") || error.contains("data x"), "{error}");
        assert!(error.contains("sample 1"), "{error}");
    }
}
