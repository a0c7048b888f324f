"""Evaluation of image folders: features, metrics, reference statistics, result documents."""
