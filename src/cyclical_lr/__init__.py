"""Reference replication of "Cyclical Learning Rates for Training Neural Networks" (Smith, 2017; arXiv:1506.01186)."""
