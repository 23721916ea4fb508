"""Pure measures: tensors in, tensors or small frozen records out. No names, paths, tables or loggers."""
