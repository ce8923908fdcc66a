"""Readers of file layouts, a module each.

`recognises` looks at the content of a file, not at its name; `read` returns the dataset, mostly by
`assemble` from a `RawSplit` for each split. Files are not trusted: pickles are read by
`corrkd.data.safe_pickle.load` alone, arrays by `containers`. A fault that a reader foresees raises
`CorrKDError`; any other ends in one line that calls the file damaged (`corrkd.data.load`).
"""
