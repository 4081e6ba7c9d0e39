//! Reading what a recipe names: nets and data, with its preprocessing.

use super::{FilesSpec, Follow, PreprocessSpec, Recipe};
use crate::data::{Arrays, Dataset, read_idx, read_image_folder, read_npy, read_safetensors};
use crate::{DistillError, Net};
use limbeck_graph::Graph;
use limbeck_tensor::{DType, Tensor, TensorMap};
use std::path::Path;

/// A recipe with its files read.
pub struct Loaded {
    /// The recipe.
    pub recipe: Recipe,
    /// The student.
    pub student: Net,
    /// The teacher, when it is a net of its own or a snapshot of the student.
    pub teacher: Option<Net>,
    /// Training data.
    pub train: Arrays,
    /// Validation data, when there is some.
    pub validation: Option<Arrays>,
    file: String,
}

impl Loaded {
    pub(super) fn error(&self, reason: impl Into<String>) -> DistillError {
        DistillError::Recipe { file: self.file.clone(), reason: reason.into() }
    }
}

impl Recipe {
    /// Reads the recipe and every file it names, relative to its folder.
    ///
    /// # Errors
    /// A key that is unknown or out of range, a file that cannot be read, fields that disagree in their number of
    /// samples or hold NaN, validation data that lacks a field.
    pub fn load(path: &Path) -> Result<Loaded, DistillError> {
        let recipe = Recipe::read(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let file = path.display().to_string();
        let error = |reason: String| DistillError::Recipe { file: file.clone(), reason };
        let net = |model: &Path| Net::from_graph(Graph::read(folder.join(model))?);
        let student = net(&recipe.student.model)?;
        let teacher = match &recipe.teacher {
            Some(spec) => match (&spec.model, spec.follow) {
                (Some(model), _) => Some(net(model)?),
                (None, Some(Follow::Snapshot)) => Some(student.clone()),
                _ => None,
            },
            None => None,
        };
        let arrays = |key: &str, files: &FilesSpec| -> Result<Arrays, DistillError> {
            let mut fields = read_fields(folder, files)?;
            if fields.is_empty() {
                return Err(error(format!("data.{key} names none of safetensors, fields and images")));
            }
            for (field, spec) in &recipe.data.preprocess {
                let tensor = fields.get(field).ok_or_else(|| {
                    error(format!("data.preprocess names '{field}', which is no field of data.{key}"))
                })?;
                let done = preprocess(tensor, spec).map_err(|e| error(format!("data.preprocess.{field}: {e}")))?;
                fields.insert(field.clone(), done);
            }
            for tensor in fields.values_mut() {
                if !tensor.dtype().is_float() && tensor.dtype() != DType::Bool {
                    *tensor = tensor.cast(DType::I64)?;
                }
            }
            let arrays = Arrays::new(fields)?;
            if arrays.is_empty() {
                return Err(error(format!("data.{key} holds no sample")));
            }
            Ok(arrays)
        };
        let train = arrays("train", &recipe.data.train)?;
        let validation = recipe.data.validation.as_ref().map(|files| arrays("validation", files)).transpose()?;
        if let Some(missing) =
            validation.as_ref().and_then(|v| train.tensors().keys().find(|k| !v.tensors().contains_key(*k)))
        {
            return Err(error(format!("data.validation lacks the field '{missing}' of data.train")));
        }
        Ok(Loaded { recipe, student, teacher, train, validation, file })
    }
}

/// All fields of the files, as they are.
fn read_fields(folder: &Path, files: &FilesSpec) -> Result<TensorMap, DistillError> {
    let mut all = TensorMap::new();
    if let Some(path) = &files.safetensors {
        all.extend(read_safetensors(&folder.join(path))?.tensors().clone());
    }
    if let Some(images) = &files.images {
        let folder = folder.join(&images.folder);
        let (rows, _) = read_image_folder(&folder, images.channels, images.height, images.width)?;
        all.extend(rows.tensors().clone());
    }
    for (field, path) in &files.fields {
        let path = folder.join(path);
        let is_npy = path.extension().is_some_and(|e| e == "npy");
        all.insert(field.clone(), if is_npy { read_npy(&path, None)? } else { read_idx(&path, None)? });
    }
    Ok(all)
}

/// `(value * scale - mean[c]) / std[c]` as f32, c along axis 1.
fn preprocess(tensor: &Tensor, spec: &PreprocessSpec) -> Result<Tensor, String> {
    let shape = tensor.shape().to_vec();
    let channels = shape.get(1).copied().unwrap_or(1);
    let inner: usize = shape.iter().skip(2).product();
    let per_channel = |name: &str, given: &[f64], default: f64| match *given {
        [] => Ok(vec![default; channels]),
        [v] => Ok(vec![v; channels]),
        _ if given.len() == channels => Ok(given.to_vec()),
        _ => Err(format!("{name} has {} numbers, but the field {shape:?} has {channels} channels", given.len())),
    };
    let (mean, std) = (per_channel("mean", &spec.mean, 0.0)?, per_channel("std", &spec.std, 1.0)?);
    let values = tensor.to_f64_vec().map_err(|e| e.to_string())?;
    let done = values.iter().enumerate().map(|(i, v)| {
        let c = i / inner.max(1) % channels.max(1);
        ((v * spec.scale - mean[c]) / std[c]) as f32
    });
    Tensor::new(shape.clone(), done.collect()).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preprocessing_counts_channels_along_axis_one() {
        let pixels = Tensor::new([1, 2, 2], vec![0u8, 255, 51, 102]).unwrap();
        let spec =
            |mean: &[f64], std: &[f64]| PreprocessSpec { scale: 1.0 / 255.0, mean: mean.into(), std: std.into() };
        let done = preprocess(&pixels, &spec(&[0.5, 0.2], &[0.5, 0.1])).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(done, [-1.0, 1.0, 0.0, 2.0]);
        let error = preprocess(&pixels, &spec(&[0.5, 0.2, 0.1], &[])).unwrap_err();
        assert!(error.contains("mean has 3") && error.contains("2 channels"), "{error}");
        let column = Tensor::new([2], vec![1i64, 3]).unwrap();
        assert_eq!(preprocess(&column, &spec(&[], &[])).unwrap().to_vec::<f32>().unwrap()[1], 3.0 / 255.0);
    }
}
