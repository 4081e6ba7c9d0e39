//! What a kernel refuses.

/// Why a convolution geometry or a kernel call was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A size that must be at least one is zero.
    #[error("{what} must be at least 1")]
    Zero {
        /// The size's name.
        what: &'static str,
    },
    /// The channels cannot be divided among the groups.
    #[error("{in_channels} input and {out_channels} output channels cannot be divided into {group} groups")]
    Group {
        /// Input channels.
        in_channels: usize,
        /// Output channels.
        out_channels: usize,
        /// Number of groups.
        group: usize,
    },
    /// The dilated kernel is larger than the padded input.
    #[error("axis {axis}: the dilated kernel covers {kernel} positions, but the padded input has only {padded}")]
    KernelTooLarge {
        /// 0 for height, 1 for width.
        axis: usize,
        /// `dilation * (kernel - 1) + 1`.
        kernel: usize,
        /// `input + pad_begin + pad_end`.
        padded: usize,
    },
    /// A product of sizes does not fit the address space.
    #[error("the size of {what} overflows; use smaller dimensions")]
    Overflow {
        /// What was being computed.
        what: &'static str,
    },
    /// A matrix product whose factors do not fit.
    #[error("matrix product: {reason}")]
    Product {
        /// What is wrong.
        reason: String,
    },
    /// A map that is malformed, or does not fit its inputs.
    #[error("map: {reason}")]
    Map {
        /// What is wrong.
        reason: String,
    },
    /// A slice has another length than the geometry asks for.
    #[error("{what} holds {got} values, {expected} are needed")]
    Length {
        /// The argument's name.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length it must have.
        expected: usize,
    },
}

/// Checks the length of argument `what`.
pub(crate) fn check_len(what: &'static str, slice: &[f32], expected: usize) -> Result<(), KernelError> {
    match slice.len() {
        got if got == expected => Ok(()),
        got => Err(KernelError::Length { what, got, expected }),
    }
}
