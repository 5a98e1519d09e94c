"""
@misc{LocalRefine,
  title = {scipion-em-localrefine: open local refinement of cryo-EM sub-volumes},
  author = {{The scipion-em-localrefine developers}},
  journal = {Software},
  year = {2026},
  url = {https://pypi.org/project/scipion-em-localrefine}
}

@article{Scheres2012,
  title = {RELION: Implementation of a Bayesian approach to cryo-EM structure determination},
  author = {Scheres, Sjors H. W.},
  journal = {Journal of Structural Biology},
  volume = {180},
  number = {3},
  pages = {519--530},
  year = {2012},
  doi = {10.1016/j.jsb.2012.09.006}
}

@article{ScheresChen2012,
  title = {Prevention of overfitting in cryo-EM structure determination},
  author = {Scheres, Sjors H. W. and Chen, Shaoxia},
  journal = {Nature Methods},
  volume = {9},
  pages = {853--854},
  year = {2012},
  doi = {10.1038/nmeth.2115}
}

@article{Chen2013,
  title = {High-resolution noise substitution to measure overfitting and validate resolution in 3D
           structure determination by single particle electron cryomicroscopy},
  author = {Chen, Shaoxia and McMullan, Greg and Faruqi, Abdul R. and Murshudov, Garib N.
            and Short, Judith M. and Scheres, Sjors H. W. and Henderson, Richard},
  journal = {Ultramicroscopy},
  volume = {135},
  pages = {24--35},
  year = {2013},
  doi = {10.1016/j.ultramic.2013.06.004}
}

@article{Punjani2020,
  title = {Non-uniform refinement: adaptive regularization improves single-particle cryo-EM reconstruction},
  author = {Punjani, Ali and Zhang, Haowei and Fleet, David J.},
  journal = {Nature Methods},
  volume = {17},
  pages = {1214--1221},
  year = {2020},
  doi = {10.1038/s41592-020-00990-8}
}

@article{Ilca2015,
  title = {Localized reconstruction of subunits from electron cryomicroscopy images of macromolecular complexes},
  author = {Ilca, Serban L. and Kotecha, Abhay and Sun, Xiaoyu and Poranen, Minna M. and Stuart, David I.
            and Huiskonen, Juha T.},
  journal = {Nature Communications},
  volume = {6},
  pages = {8843},
  year = {2015},
  doi = {10.1038/ncomms9843}
}

@article{RosenthalHenderson2003,
  title = {Optimal determination of particle orientation, absolute hand, and contrast loss in
           single-particle electron cryomicroscopy},
  author = {Rosenthal, Peter B. and Henderson, Richard},
  journal = {Journal of Molecular Biology},
  volume = {333},
  number = {4},
  pages = {721--745},
  year = {2003},
  doi = {10.1016/j.jmb.2003.07.013}
}
"""
