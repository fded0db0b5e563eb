"""Settings that every test runs under."""

import atexit
import base64
import gc
import os
import pathlib
import re
import shutil
import tempfile

# Tests compile much and run little: what XLA and LLVM optimize would take most of their time, and
# XLA's plain emitters compile such a program in a third of the time. What XLA_FLAGS has comes after
# and wins: the thorough job of CI uses the emitters of users' programs.
os.environ["XLA_FLAGS"] = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
) + os.environ.get("XLA_FLAGS", "")
# Programs are traced and lowered as fast as they compile then. Where in our files each operation is
# from takes a sixth of that time, and is for whoever reads a program.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Many compile the same programs, also in processes of their own. Each worker has its own store: one
# isn't to read what another is writing. JSEG_TEST_PROGRAMS names a folder that keeps the stores for
# the next time, which then compiles only what has changed.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(
  os.path.abspath(
    os.environ.get("JSEG_TEST_PROGRAMS") or tempfile.mkdtemp(prefix="jseg-programs-")
  ),
  os.environ.get("PYTEST_XDIST_WORKER", "main"),
)
# Kept, the small programs are worth their files too.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = (
  "0" if os.environ.get("JSEG_TEST_PROGRAMS") else "0.3"
)

# Sets that are prepared without a folder of their own go to one of ours, not to the user's.
if "TFDS_DATA_DIR" not in os.environ:
  os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="jseg-data-")
  atexit.register(shutil.rmtree, os.environ["TFDS_DATA_DIR"], ignore_errors=True)

# Of processes that tests start, too: libtpu, which is there to compile, looks for chips otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from jseg.xla_flags import set_cpu_flags

# Until all is imported, what is made stays: there is no garbage to look for.
gc.disable()

# As our commands do, whose processes then find the programs of the tests.
set_cpu_flags()

if not os.environ.get("JSEG_TEST_PROGRAMS"):
  atexit.register(
    shutil.rmtree, pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).parent, ignore_errors=True
  )

# Tests of data parallelism need several devices; four simulated ones cost the others nothing.
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


# Files that train, or compile whole networks, the longest first. All others are the everyday loop,
# `pytest -m fast`.
SLOW = (
  "test_instance_run.py",
  "test_networks.py",
  "test_conformance.py",
  "test_mask_rcnn_golden.py",
  "test_golden.py",
  "test_real_data.py",
  "test_notebooks.py",
  "test_end_to_end.py",
  "test_crf_golden.py",
  "test_export.py",
  "test_augment_instances.py",
  "test_crf_run.py",
  "test_models.py",
  "test_mask_rcnn.py",
  "test_crf.py",
  "test_step.py",
  "test_scientific_run.py",
  "test_resnet.py",
  "test_backbones.py",
  "test_nn_pyramid.py",
  "test_weights_import.py",
  "test_report.py",
  "test_wheel.py",
  "test_hosts.py",
  "test_examples.py",
  "test_doors.py",
  "test_predict.py",
  "test_inference.py",
  "test_docs_blocks.py",
  "test_preview.py",
  "test_tpu.py",
  "test_cuda.py",
  "test_gpu.py",
  "test_nn_remat.py",
  "test_evaluation.py",
  "test_crf_exact.py",
  "test_augment_own.py",
  "test_length.py",
  "test_class_order.py",
  "test_instance_views.py",
  "test_tasks.py",
  "test_multilabel.py",
  "test_remote.py",
)
for name in SLOW:
  assert (pathlib.Path(__file__).parent / name).is_file(), f"SLOW names {name}, which isn't there"

# What repeats a check on another network, variant or set that shares its code with one that stays,
# and compiles for seconds: `pytest -m thorough`, which CI runs in a job of its own. By node id.
THOROUGH = tuple(
  re.compile(f"test_{pattern}")
  for pattern in (
    r"backbones\.py::test_features_by_stride\[resnet(101|152)",
    r"conformance\.py::test_(every_parameter|logits_cover)\w*\[.*\{'",
    r"convolutions\.py::test_xla_follows",
    r"conformance\.py::test_every_parameter\w*\[(pspnet|refinenet)-",
    r"conformance\.py::test_(every_parameter|logits_cover)\w*"
    r"\[(fcn16s|fcn32s|segnet_basic|deeplab_v2|fcn_resnet)-",
    r"conformance\.py::test_two_devices_equal_one\[(unet3d|deeplab_v)",
    r"conformance\.py::test_bfloat16_is_close\[deeplab_v3",
    r"conformance\.py::test_its_own_initial_values_are_finite"
    r"\[(?!(unet|unet3d|fcn8s|deeplab_v3)\])",
    r"crf\.py::test_batch_jit_and_vmap_equal_one_by_one\[exact",
    r"crf\.py::test_gradients_equal_finite_differences\[(?!lattice)",
    r"crf\.py::test_gradients_of_ten_iterations",
    r"crf\.py::test_two_lattices_are_closer_than_one",
    r"crf_run\.py::test_the_layer_is_trained_with_the_network_and_resumes",
    r"cuda\.py::test_convolutions\w*\[(?!unet\])",
    r"data_hostile\.py::test_(a_large_image_takes|the_largest_image_is_read)",
    r"docs_blocks\.py::test_blocks_of_python_run\[write_a_network",
    r"doors\.py::test_a_data_set_given_in_python_is_asked_for",
    r"end_to_end\.py::test_evaluation_agrees_over_devices\[2\]",
    r"export\.py::test_it_gives_the_same_logits_without_this_library\[(?!unet)",
    r"golden\.py::test_backbone\[(alexnet_fc|vgg16-|vgg16_timm|resnet18|resnet50-)",
    r"golden\.py::test_deeplab_v1\[deeplab_v1-",
    r"golden\.py::test_deeplab_v2_at_one_scale",
    r"golden\.py::test_deeplab_v3_at_either_stride",
    r"golden\.py::test_fcn\[(fcn32s|fcn16s|fcn8s_at_once)",
    r"golden\.py::test_segnet\[segnet_odd",
    r"golden\.py::test_torchvision\[fcn",
    r"golden\.py::test_unet3d_unpadded",
    r"inference\.py::test_devices_and_batches_change_no_pixel\[(deeplab\w*|nnunet|pspnet|tile)\]",
    r"inference\.py::test_evaluation_and_prediction_are_the_same\[(deeplab\w*|nnunet|pspnet|tile)\]",
    r"inference\.py::test_logits_of_tiles\w*\[(?!unet)",
    r"inference\.py::test_masks_of_another_size\w*\[window",
    r"instance_run\.py::test_windows_are_the_same",
    r"instance_run\.py::test_precision_does_not_depend_on_batches_and_devices",
    r"mask_rcnn\.py::test_half_precision_is_close",
    r"mask_rcnn\.py::test_pooling_instead_of_alignment",
    r"mask_rcnn_golden\.py::test_keypoints",
    r"mask_rcnn_golden\.py::test_network\[maskrcnn_resnet50_fpn-",
    r"models\.py::test_fcn_(has_no_handedness|lays_its_logits)\w*\[(?!fcn8s-vgg16|vgg16)",
    r"models\.py::test_fcn_takes_any_size\[(?!fcn8s)",
    r"models\.py::test_networks_take_other_backbones"
    r"\[(?!deeplab_v3-vgg|refinenet-googlenet|mask_rcnn-[vg])",
    r"models\.py::test_orders_of_chained_pooling",
    r"models\.py::test_parameter_counts_of_networks_on_resnet\[deeplab_v2",
    r"models\.py::test_parameters_of_refinenets_decoder_by_hand\[knobs[134]",
    r"models\.py::test_refinenet_begins_with_small_scores",
    r"networks\.py::test_each_fcn_starts_from_the_one_before",
    r"networks\.py::test_published_unet_with_weight_map_and_region_measures",
    r"networks\.py::test_recomputed_statistics_are_those_that_are_measured_and_saved",
    r"nn_remat\.py::test_every_network_computes_again\[(?!(unet|unet3d|fcn8s|deeplab_v3)\])",
    r"nn_remat\.py::test_gradients_statistics_and_draws_are_the_same\[unet",
    r"nn_resize\.py::test_resize_to_equals\w*\[multiplied-size[123]",
    r"notebooks\.py::test_notebook_runs\[course",
    r"predict\.py::test_a_batch_is_what_each_of_its_images_is\[averaged",
    r"predict\.py::test_scores_that_must_be_whole",
    r"real_data\.py::test_a_folder_trains_evaluates_and_predicts",
    r"real_data\.py::test_the_check_finds_nothing_wrong\[camvid",
    r"remote\.py::test_a_run_in_a_store_is_the_run_of_a_folder",
    r"resnet\.py::test_parameters_of_the_cascade",
    r"resnet\.py::test_dilation_keeps_what_strides_computed\[deep",
    r"scientific_run\.py::test_a_run_of_three_channels_starts_one_of_five",
    # What libtpu aborts on takes the worker with it, so it is a job of its own that loads it.
    r"tpu\.py::",
    r"gpu\.py::",
    r"step\.py::test_parts_make_the_step_of_the_whole_batch\[1-4",
    r"step\.py::test_devices_equal_one_device\w*\[2\]",
    r"weights_import\.py::test_a_network_strides_where",
    r"weights_import\.py::test_folded_preprocessing\[(?!fcn8s)",
    r"weights_import\.py::test_parameters_are_counted_alike\[\w+-deeper",
    r"weights_import\.py::test_every_network_that_a_classifier_fits\w*\[(?!resnet18)",
    # CI uses the wheel in a job of its own, too.
    r"wheel\.py::test_the_wheel_trains",
  )
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  """Marks the tiers, and puts the fast tests last: they fill the time that a worker has left."""
  place = {name: i for i, name in enumerate(SLOW)}
  items.sort(key=lambda item: place.get(item.path.name, len(SLOW)))
  for item in items:
    if item.path.name not in place:
      item.add_marker(pytest.mark.fast)
    if any(pattern.search(item.nodeid) for pattern in THOROUGH):
      item.add_marker(pytest.mark.thorough)


def pytest_collection_finish():
  """Takes what is imported by now, and stays, out of every later search for garbage.

  Else `forget` alone looks through a million objects after each file.
  """
  gc.freeze()
  gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """Gives a worker whole files, which share what they build, in the order above."""
  from xdist.scheduler import LoadFileScheduling

  config.option.loadscopereorder = False
  return LoadFileScheduling(config, log)


# Files whose figures Matplotlib draws. Elsewhere they are built, and a run writes an empty picture:
# drawing takes a second of each evaluation, and training a tiny network three.
DRAWN = (
  "test_comparison.py",
  "test_docs_blocks.py",
  "test_evaluation.py",
  "test_instance_run.py",
  "test_lr_finder.py",
  "test_networks.py",
  "test_preview.py",
  "test_real_data.py",
  "test_report.py",
)


# A picture of one pixel.
EMPTY = base64.b64decode(
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


@pytest.fixture(autouse=True, scope="module")
def undrawn(request):
  """Leaves out the drawing of figures, except in the files of DRAWN."""
  with pytest.MonkeyPatch.context() as patch:
    if request.path.name not in DRAWN:
      canvas = "matplotlib.backends.backend_agg.FigureCanvasAgg"
      patch.setattr(f"{canvas}.print_png", lambda _, file: file.write(EMPTY))
    yield


@pytest.fixture(autouse=True, scope="module")
def forget():
  """Drops what a module traced and compiled, gigabytes in all that only slow the rest down."""
  yield
  jax.clear_caches()
  gc.collect()
