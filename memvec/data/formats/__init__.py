"""Readers of single files, one module a family of formats; `memvec.data.reader` chooses among them."""
