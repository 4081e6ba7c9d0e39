//! Element types: ONNX's numbering, widths, and the Rust types that carry them.

use half::{bf16, f16};
use std::fmt;

macro_rules! dtypes {
    ($($variant:ident = $code:literal, $bits:literal, $name:literal;)*) => {
        /// Element type of a tensor. Discriminants are those of ONNX `TensorProto.DataType`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs)]
        #[repr(i32)]
        pub enum DType { $($variant = $code),* }

        impl DType {
            /// The type with this ONNX number.
            pub fn from_onnx(code: i32) -> Option<DType> {
                match code { $($code => Some(DType::$variant),)* _ => None }
            }
            /// Width of one element in bits; 0 for strings, which have none.
            pub fn bits(self) -> usize {
                match self { $(DType::$variant => $bits),* }
            }
            /// Lower-case name, as the ONNX specification prints it (`float32`, `int8`, ...).
            pub fn name(self) -> &'static str {
                match self { $(DType::$variant => $name),* }
            }
        }
    };
}

dtypes! {
    F32 = 1, 32, "float32";
    U8 = 2, 8, "uint8";
    I8 = 3, 8, "int8";
    U16 = 4, 16, "uint16";
    I16 = 5, 16, "int16";
    I32 = 6, 32, "int32";
    I64 = 7, 64, "int64";
    String = 8, 0, "string";
    Bool = 9, 8, "bool";
    F16 = 10, 16, "float16";
    F64 = 11, 64, "float64";
    U32 = 12, 32, "uint32";
    U64 = 13, 64, "uint64";
    C64 = 14, 64, "complex64";
    C128 = 15, 128, "complex128";
    BF16 = 16, 16, "bfloat16";
    F8E4M3FN = 17, 8, "float8e4m3fn";
    F8E4M3FNUZ = 18, 8, "float8e4m3fnuz";
    F8E5M2 = 19, 8, "float8e5m2";
    F8E5M2FNUZ = 20, 8, "float8e5m2fnuz";
    U4 = 21, 4, "uint4";
    I4 = 22, 4, "int4";
    F4E2M1 = 23, 4, "float4e2m1";
    F8E8M0 = 24, 8, "float8e8m0";
    U2 = 25, 2, "uint2";
    I2 = 26, 2, "int2";
    F6E2M3 = 27, 6, "float6e2m3";
    F6E3M2 = 28, 6, "float6e3m2";
}

impl DType {
    /// The ONNX number of this type.
    pub fn to_onnx(self) -> i32 {
        self as i32
    }

    /// Bytes that `elements` elements occupy, sub-byte types packed; `None` on overflow.
    pub fn byte_len(self, elements: usize) -> Option<usize> {
        elements.checked_mul(self.bits()).map(|bits| bits.div_ceil(8))
    }

    /// True for the real floating-point types that gradients may flow through.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    }

    /// True for whole-number types of at least 8 bits.
    pub fn is_int(self) -> bool {
        use DType::*;
        matches!(self, I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64)
    }

    /// Smallest and largest value of an integer type of at most 64 bits.
    pub fn int_range(self) -> Option<(i128, i128)> {
        let bits = self.bits() as u32;
        match self {
            DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::I4 | DType::I2 => {
                Some((-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1))
            }
            DType::U8 | DType::U16 | DType::U32 | DType::U64 | DType::U4 | DType::U2 => Some((0, (1i128 << bits) - 1)),
            _ => None,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that is stored in tensors of one dtype.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// The dtype whose bytes are this type's.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($rust:ty => $variant:ident),*) => {
        $(impl Element for $rust { const DTYPE: DType = DType::$variant; })*
    };
}
elements!(f32 => F32, f64 => F64, f16 => F16, bf16 => BF16, i8 => I8, i16 => I16, i32 => I32,
          i64 => I64, u8 => U8, u16 => U16, u32 => U32, u64 => U64);
