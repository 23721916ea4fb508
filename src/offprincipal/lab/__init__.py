"""The laboratory: a world small enough to know the answer, in which every claim is tried (extra ``lab``)."""
