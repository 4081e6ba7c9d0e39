//! `+ - * /`, unary minus and logical `!` on [`Var`], with numbers on either side taking the other operand's dtype.

use super::Var;
use std::ops::{Add, Div, Mul, Neg, Not, Sub};

macro_rules! operator {
    ($trait:ident, $method:ident, $op:literal) => {
        impl<'c> $trait for Var<'c> {
            type Output = Var<'c>;
            #[track_caller]
            fn $method(self, other: Var<'c>) -> Var<'c> {
                self.cx().op($op, &[self, other], &[])
            }
        }
        impl<'c> $trait<f64> for Var<'c> {
            type Output = Var<'c>;
            #[track_caller]
            fn $method(self, other: f64) -> Var<'c> {
                self.cx().op($op, &[self, self.cx().scalar_of(other, self.dtype())], &[])
            }
        }
        impl<'c> $trait<Var<'c>> for f64 {
            type Output = Var<'c>;
            #[track_caller]
            fn $method(self, other: Var<'c>) -> Var<'c> {
                other.cx().op($op, &[other.cx().scalar_of(self, other.dtype()), other], &[])
            }
        }
    };
}
operator!(Add, add, "Add");
operator!(Sub, sub, "Sub");
operator!(Mul, mul, "Mul");
operator!(Div, div, "Div");

impl<'c> Neg for Var<'c> {
    type Output = Var<'c>;
    #[track_caller]
    fn neg(self) -> Var<'c> {
        self.cx().op("Neg", &[self], &[])
    }
}

impl<'c> Not for Var<'c> {
    type Output = Var<'c>;
    #[track_caller]
    fn not(self) -> Var<'c> {
        self.cx().op("Not", &[self], &[])
    }
}
