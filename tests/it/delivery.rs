pub(crate) mod promise;
pub(crate) mod sink;
