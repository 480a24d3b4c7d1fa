"""Plausible mistakes, one line each, and the test that must notice: by hand, since all of them take an hour.

    python -m tests.mutations                   every row: the changed copy, its test, caught or missed
    python -m tests.mutations moco contrastive  the rows whose file or test holds one of these words
    python -m tests.mutations --package ...     all of the package's tests in place of the row's own
    python -m tests.mutations --check           only whether each text is still there, once, and its test is not slow

A row is (file, its text, the text of the mistake, a test's file, the name of the test or a part of it). The kinds: signs,
masks, axes, one off, the wrong reduction, old weights for new, a fixture that makes two things equal, a setting tested as
a constant or alone, an order of the host. Where code has moved, the row moves with it.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

REPO = pathlib.Path(__file__).parent.parent
ROWS = (
    # of late
    ("vision/decode_image.py", 'if image.format in ("JPEG", "MPO"):', 'if image.format in ("MPO",):', "vision/test_segmentation", "bad_maps"),
    ("vision/decode_image.py", "np.asarray(ImageOps.exif_transpose(image), np.uint8)", "np.asarray(image, np.uint8)", "vision/test_segmentation", "on_its_side"),
    ("multimodal/listed.py", 'captions[str(one["image_id"])]', 'captions[one["image_id"]]', "multimodal/test_listed", "json_of_pairs"),
    ("multimodal/tables.py", 'names[0].startswith(("http:", "https:"))', "False", "multimodal/test_sources", "cannot_be_used"),
    ("launch/convert.py", '"prefix" in part.objective.batch_spec(1)', '"inputs" in part.objective.batch_spec(1)', "launch/test_convert", "from_both_sides"),
    ("paradigm/hf/files.py", 'white = 255 * float(factor) if said.get("do_rescale", True) else 255.0', "white = 1.0", "multimodal/test_weights", "normalised"),
    ("multimodal/hf/__init__.py", '"augment": views(encoder.image_size, **said)', '"augment": views(encoder.image_size)', "multimodal/test_weights", "normalised"),
    ("vision/hf/__init__.py", "families = FAMILIES if isinstance(seen, BEiT) else", "families = FAMILIES if True else", "vision/test_weights", "no_tokens"),
    ("multimodal/fields.py", "for v in values if v is not None)", "for v in values)", "multimodal/test_webdataset", "all_caption_members"),
    ("t5like/prepare_records.py", '_TURNS["from" in turn]', "_TURNS[0]", "t5like/test_written", "dialogues_become"),
    ("benchmarks/adaptation_page.py", "if column[2] == share]", "]", "test_adaptation_page", "each_part"),
    ("paradigm/optim.py", ' or name.endswith("relative_bias/embedding") and x.ndim == 3', "", "paradigm/test_optim", "tree_of_modules"),
    ("vision/attention_maps.py", "grid_of(*images.shape[1:3], encoder.patch)", "encoder.grid", "vision/test_attention_maps", "another_size"),
    ("vision/objectives/mae.py", "keep=ids_shuffle[:, : self.kept], keys=keys", "keep=ids_shuffle[:, : self.kept]", "vision/test_views", "dropout_of_its_own"),
    ("vision/objectives/two_views.py", ', dropout="dropout/teacher"', "", "vision/test_views", "dropout_of_its_own"),
    ("vision/objectives/base.py", "measure(view.size)) for view in views", "measure(self.encoder.image_size)) for view in views", "vision/test_views", "flops"),
    ("paradigm/attention.py", "near |= self.everywhere", "near &= self.everywhere", "paradigm/test_stack_settings", "alternate"),
    ("paradigm/splash.py", "of(near.replace(window=None)), of(near)", "of(near), of(near.replace(window=None))", "paradigm/test_attention_kernels", "splash_computes"),
    ("multimodal/tables.py", "int(found[:, labels >= 0].sum())", "len(words) - words.count('')", "multimodal/test_tables", "class_a_line"),
    ("multimodal/objectives/nlvr.py", '"second_aspect"))[: self.pictures]', '"second_aspect"))[::-1][: self.pictures]', "multimodal/test_nlvr", "vilts"),
    ("t5like/labels.py", 'begin = start + len(inside) - len(inside.lstrip())', 'begin = start - 4', "t5like/test_tasks", "spans"),
    ("t5like/labels.py", 'if set(tags[first : last + 1]) != {"O"}', 'if False', "t5like/test_tasks", "spans"),
    ("launch/aot/hlo.py", "if self._root(inside).name == within:", "if False:", "launch/aot/test_hlo", "hands_on"),
    ("launch/aot/hlo.py", "for _, operand in pairs} - read", "for _, operand in pairs}", "launch/aot/test_hlo", "under_way"),
    ("t5like/labels.py", "tokenizer.encode_behind([", "tokenizer.encode_batch([", "t5like/test_tokenizer", "stands_behind"),
    ("t5like/decode/likelihood.py", "tokenizer.encode_behind if behind(n) else fresh", "fresh", "t5like/test_written", "read_as_with"),
    ("t5like/tokenizers/base.py", "plain if plain is not None else spaced", "plain", "t5like/test_tokenizer", "sentinels_that_a_model"),
    ("t5like/tokenizers/__init__.py", "extra_ids = sentinels", "pass", "t5like/test_tokenizer", "tokens_were_added"),
    ("paradigm/losses.py", "if rows * parts > 1:", "if False:", "paradigm/test_losses", "between_devices"),
    ("launch/run/experiment.py", "slips.check_parts(self)", "pass", "launch/run/test_experiment", "parts_that_are_none"),
    # paradigm: the step
    ("paradigm/step.py", "jnp.where(good, 0, state.bad_steps + 1)", "state.bad_steps + 1", "paradigm/test_contract", "a_bad_step_changes"),
    ("paradigm/step.py", "jnp.isfinite(value) & jnp.isfinite(norm)", "jnp.isfinite(value)", "paradigm/test_contract", "bad_where_its_loss_or"),
    ("paradigm/step.py", "jnp.minimum(1.0, clip / (norm + 1e-6))", "clip / (norm + 1e-6)", "paradigm/test_contract", "clipping_bounds or resume"),
    ("paradigm/step.py", "x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1)", "x.reshape(n, x.shape[0] // n, *x.shape[1:])", "paradigm/test_contract", "inverse"),
    ("paradigm/step.py", "ctx = Context(jnp.int32(FINAL), seed, False", "ctx = Context(jnp.int32(0), seed, False", "paradigm/test_contract", "evaluation_draws_nothing"),
    ("paradigm/step.py", "add(losses.metrics)", "jax.tree.map(lambda x: x[0], losses.metrics)", "paradigm/test_contract", "microbatches_equal"),
    # paradigm: teachers and averages
    ("paradigm/teacher.py", "(decay * a + (1.0 - decay) * x)", "(decay * x + (1.0 - decay) * a)", "paradigm/test_contract", "weight_average or extra_is_updated"),
    ("paradigm/teacher.py", "(step + self.ahead)", "(step)", "vision/test_moco_v3", "teacher_follows"),
    ("paradigm/teacher.py", "(step + self.ahead)", "(0 * step)", "vision/test_moco", "teacher_follows"),
    ("paradigm/teacher.py", "(cursor + rows.shape[0])", "(cursor + 1)", "paradigm/test_trees", "queue_is_a_ring"),
    ("paradigm/teacher.py", "decay=0.9):", "decay=0.1):", "vision/test_norms", "norm or moment or statistics"),
    # paradigm: losses
    ("paradigm/losses.py", "(target > rival)", "(target >= rival)", "paradigm/test_losses", "tie"),
    ("paradigm/losses.py", "1 + 2 * z_loss * log_z", "1 + z_loss * log_z", "paradigm/test_losses", "equals_a_loop"),
    ("paradigm/losses.py", "nll + z_loss * log_z**2", "nll + z_loss * log_z", "paradigm/test_losses", "equals_a_loop"),
    ("paradigm/losses.py", "log_z = top + jnp.log(normalizer)", "log_z = jnp.log(normalizer)", "paradigm/test_losses", "equals_a_loop or large"),
    ("paradigm/losses.py", "total = jnp.sum(loss * weights)", "total = jnp.sum(loss)", "paradigm/test_losses", "equals_a_loop"),
    ("paradigm/contrastive.py", "(positive_B > best_GxB)", "(positive_B >= best_GxB)", "paradigm/test_contrastive", "tie"),
    ("paradigm/contrastive.py", "jnp.where(mask > 0, ids, -1)", "ids", "paradigm/test_contrastive", "equals_a_loop and ragged"),
    ("paradigm/contrastive.py", "total * jnp.exp(top - new)", "total", "paradigm/test_contrastive", "equals_a_loop or large"),
    ("paradigm/contrastive.py", "(ids_T >= 0) & (owner_R[:, None] != ids_T)", "(ids_T >= 0)", "paradigm/test_contrastive", "equals_a_loop"),
    ("paradigm/contrastive.py", "jax.nn.softplus(-positive) + negative[0]", "jax.nn.softplus(positive) + negative[0]", "paradigm/test_contrastive", "sigmoid_pairs_equal"),
    ("paradigm/contrastive.py", "(i, (i + 1) % ways)", "(i, (i + 2) % ways)", "paradigm/test_contrastive", "sharded_equals"),
    ("paradigm/contrastive.py", "d_scale = jnp.sum(d_q * q", "d_scale = jnp.mean(d_q * q", "paradigm/test_contrastive", "equals_a_loop"),
    # epochs that cut a text at other tokens
    ("paradigm/dataset.py", "mix64(self.seed, _CHANGE, int(k), epoch)", "mix64(self.seed, _CHANGE, int(k), 0 * epoch)", "t5like/test_shifted_windows", "every_epoch"),
    ("t5like/windows.py", "(0 if begins else 1), 0)", "(0 if around else 1), 0)", "t5like/test_shifted_windows", "fill_their_windows"),
    ("t5like/windows.py", "np.where(places + 1 < ends, places + 1, starts)", "(places + 1) % len(self.windows)", "t5like/test_shifted_windows", "rotated_file"),
    # texts that are too short, and programs that were compiled meanwhile
    ("t5like/objectives/base.py", "[*self.front, *prompt, blank, v.end]", "[*self.front, *prompt, v.end]", "t5like/test_written", "asked_as_in_training"),
    ("t5like/objectives/ul2.py", "visible=1 + len(given)", "visible=len(given)", "t5like/test_written", "asked_as_in_training"),
    ("t5like/objectives/base.py", "if short.all():", "if short.any():", "t5like/test_short_texts", "most_texts"),
    ("t5like/objectives/simcse.py", "- ends < self._least", "< self._least", "t5like/test_short_texts", "all_too_short"),
    ("paradigm/combine.py", "return [line for _, part in self.parts for line in part.check_data(prepared)]", "return []", "t5like/test_short_texts", "all_too_short"),
    ("t5like/decode/steps.py", "if not compiled:", "if True:", "t5like/test_decode", "by_the_clock"),
    ("t5like/objectives/base.py", "for name in names if any(map(callable, rates))", "for name in names", "t5like/test_masked_lm", "schedule_leaves"),
    # models by name, and words in a row
    ("t5like/masking.py", "n = 1 + rng.choice(len(shares), p=shares)", "n = 1 + rng.choice(len(shares))", "t5like/test_masked_lm", "hidden_whole"),
    ("t5like/models/sizes.py", '"qkv_bias": True, "rope_theta"', '"qkv_bias": False, "rope_theta"', "t5like/test_models", "of_its_style"),
    ("t5like/models/sizes.py", '"d_ff": 4864', '"d_ff": 4846', "t5like/test_models", "named_sizes"),
    # paradigm: attention
    ("paradigm/attention.py", "columns <= self.positions(length)[..., None]", "columns < self.positions(length)[..., None]", "paradigm/test_transformer", "causal_by_gradient"),
    ("paradigm/attention.py", "seen |= columns < self.prefix", "seen |= columns <= self.prefix", "paradigm/test_transformer", "prefix_by_gradient"),
    ("paradigm/attention.py", "self.queries[:, :, None] == keys", "self.queries[:, :, None] >= keys", "paradigm/test_transformer", "packing_by_gradient"),
    ("paradigm/attention.py", "self.positions(length)[..., None]) < self.window", "self.positions(length)[..., None]) <= self.window", "paradigm/test_stack_settings", "window_by_gradient"),
    ("paradigm/attention.py", "jnp.where(distance > 0, buckets, 0)", "jnp.where(distance < 0, buckets, 0)", "paradigm/test_transformer", "relative_buckets"),
    ("paradigm/attention.py", "flat[..., rows - 1 :", "flat[..., rows :", "paradigm/test_transformer", "lookup_by_pair"),
    ("paradigm/layers.py", "jnp.zeros(like.shape, jnp.float32).at[ids].add(g.astype(jnp.float32))", "jnp.zeros(like.shape, g.dtype).at[ids].add(g)", "paradigm/test_transformer", "summed_in_float32"),
    ("paradigm/attention.py", "offset=start if self.offset", "offset=None if self.offset", "paradigm/test_transformer", "blocks_of_queries"),
    ("paradigm/precision.py", "bits + noise", "bits", "paradigm/test_precision", "neighbour"),
    ("paradigm/precision.py", "x.ndim - trees.is_stacked(name) >= 2", "x.ndim >= 2", "paradigm/test_precision", "stored_in_half"),
    ("paradigm/context.py", "axis_index(CONTEXT) * share", "axis_index(CONTEXT) * 0", "paradigm/test_context", "that_of_one_device and blocks"),
    ("paradigm/context.py", "dropped(p, first + ", "dropped(p, ", "paradigm/test_context", "dropped"),
    ("paradigm/splash.py", "[pair[::-1] for pair in pairs] if back else pairs", "pairs", "paradigm/test_context", "splash"),
    ("paradigm/cudnn.py", "jnp.all(count <= DOCUMENTS)", "True", "paradigm/test_attention_kernels", "by_their_places"),
    ("paradigm/cudnn.py", "jnp.all(queries == keys) & whole", "jnp.all(queries == keys)", "paradigm/test_attention_kernels", "by_their_places"),
    ("paradigm/cudnn.py", "starts[:, 1:] - starts[:, :-1], -1)", "starts[:, 1:] - starts[:, :-1] - 1, -1)", "paradigm/test_attention_kernels", "by_their_places"),
    ("paradigm/cudnn.py", "mask.prefix, mask.window, mask.alone, mask.offset\n    alike", "mask.prefix, mask.alone, mask.offset\n    alike", "paradigm/test_attention_kernels", "other_masks"),
    ("paradigm/layers.py", "if 4 * table.size <= found else table", "if False else table", "paradigm/test_transformer", "cut_by_columns"),
    ("benchmarks/gpu.py", "and \"error\" not in row for row", "for row", "test_gpu_page", "done_again"),
    ("paradigm/splash.py", "PADDING = -1", "PADDING = 1", "paradigm/test_attention_kernels", "splash_computes"),
    ("paradigm/splash.py", "(window - 1, 0 if causal", "(window, 0 if causal", "paradigm/test_attention_kernels", "splash_computes and window"),
    ("paradigm/splash.py", "(keys > 0).astype(jnp.int32)", "keys", "paradigm/test_attention_kernels", "splash_computes and padded"),
    ("paradigm/rope.py", "b * cos + a * sin", "b * cos - a * sin", "paradigm/test_rope", "differences"),
    ("paradigm/transformer.py", '(0, None))(keys, own["layer"])', '(0, None))(keys, 0 * own["layer"])', "paradigm/test_transformer", "layers_draw"),
    # paradigm: optimizers, schedules, trees
    ("paradigm/objective.py", "return _traced_first(self, key)", "return self._draw(key)", "paradigm/test_contract", "first_parameters"),
    ("paradigm/optim.py", "1.0 if rows else 0.0)", "1.0)", "paradigm/test_optim", "decays_by_default"),
    ("paradigm/optim.py", 'return jnp.asarray(step, x.dtype) if name == "count"', 'return jnp.asarray(0 * step, x.dtype) if name == "count"', "paradigm/test_optim", "step_is_the_one_given"),
    ("paradigm/optim.py", "leaf.lr_scale * lr", "lr", "paradigm/test_optim", "lr_scale_reaches"),
    ("paradigm/optim.py", "max(1, columns / rows) ** 0.5", "max(1, rows / columns) ** 0.5", "paradigm/test_optim", "Muon or muon"),
    ("paradigm/optim.py", "trust if leaf.rows else", "trust if True else", "paradigm/test_optim", "lars"),
    ("paradigm/schedule.py", "xp.minimum(n / warmup, 1)", "xp.minimum((n + 1) / warmup, 1)", "paradigm/test_schedule", "equal_optax"),
    ("paradigm/schedule.py", "(n - begin) / max(end - begin, 1)", "(n - begin) / max(end, 1)", "paradigm/test_schedule", "equal_optax or papers"),
    ("paradigm/trees.py", "        if re.search(pattern, name):\n            return value", "        if re.match(pattern, name):\n            return value", "paradigm/test_trees", "names_and_tables"),
    # paradigm: adaptations
    ("paradigm/adapt/lora.py", "jax.lax.stop_gradient(1.0 / jnp.sqrt(larger))", "1.0 / jnp.sqrt(larger)", "adapt/test_references", "takes_its_norm_as_constant"),
    ("paradigm/adapt/base.py", 'path[-1] == "bias" and path[1] != "head"', 'path[-1] == "bias"', "adapt/test_methods", "bitfit_wants"),
    ("paradigm/adapt/lora.py", '(None, ("tensor", "fsdp?"))', '(None, "tensor")', "launch/test_adapt", "in_proportion"),
    ("paradigm/partition.py", "constrain(x, *map(_firm, axes), partial=True)", "x", "paradigm/test_partition", "computed_with"),
    ("paradigm/partition.py", "axis in (CONTEXT, BATCH)", "axis == CONTEXT", "paradigm/test_partition", "need_not_divide"),
    ("benchmarks/vision.py", "/ cost(data, base)[1])", "/ cost(data, UNIT)[1])", "launch/test_pages", "smaller_questions"),
    ("paradigm/attentive.py", "AttentionMask(keys=segments)", "AttentionMask()", "paradigm/test_attentive", "by_loops or padding"),
    ("multimodal/few_shot.py", "jnp.exp(-beta * (1 - x @ keys.T))", "jnp.exp(-beta * (1 + x @ keys.T))", "multimodal/test_few_shot", "by_loops"),
    ("multimodal/few_shot.py", "order >= max(self.shots)", "order >= 0", "multimodal/test_few_shot", "what_names_do_not"),
    ("launch/convert.py", "meta, checkpoints.meta(step)[1])", "meta, {})", "launch/test_adapted_runs", "without_its_optimizers"),
    ("benchmarks/compare.py", "lacks = len(tables) < len(there)", "lacks = False", "test_adaptation_page", "of_which_no_run_is_here"),
    ("benchmarks/compare.py", "x or y for x, y", "x for x, y", "test_adaptation_page", "of_other_runs_stays"),
    ("benchmarks/compare.py", "order.index(last) + 1", "order.index(last)", "test_adaptation_page", "of_other_runs_stays"),
    ("benchmarks/adaptation_data.py", "order[: -2 * HELD_OUT] for", "order for", "test_adaptation_page", "held_out_by"),
    ("launch/run/forgetting.py", "(given | fits)", "(fits | given)", "launch/test_adapted_runs", "what_was_forgotten"),
    ("t5like/tasks/choice.py", "mean = total / np.array", "mean = total * np.array", "t5like/test_written", "by_likelihood"),
    ("t5like/tasks/choice.py", "is not None or i != asked]", "is not None or True]", "t5like/test_written", "shots"),
    ("paradigm/adapt/prompt.py", "x, positions + self.length, *more", "x, positions, *more", "adapt/test_peft", "gpt2_prompt or gpt2_prefix"),
    ("paradigm/attention.py", "shared=self.shared + count", "shared=self.shared", "adapt/test_references", "who_sees_soft_tokens"),
    # paradigm: data
    ("paradigm/dataset.py", "int(mix64(self.seed, _REPLACE, index, attempt)[0]", "int(mix64(self.seed, _REPLACE, attempt)[0]", "paradigm/test_dataset", "replacements_are_drawn"),
    ("paradigm/dataset.py", "mix64(self.seed, _EPOCH, int(k), epoch)", "mix64(self.seed, _EPOCH, int(k))", "paradigm/test_dataset", "epochs_hold"),
    ("paradigm/dataset.py", "zip(index, _seeds(*words, index))", "zip(index, _seeds(*words, rows))", "paradigm/test_dataset", "example_is_a_function or restart"),
    ("paradigm/dataset.py", "record is not None for row", "True for row", "paradigm/test_dataset", "evaluation"),
    ("paradigm/dataset.py", "step if self.train else FINAL", "step", "paradigm/test_dataset", "evaluation"),
    ("paradigm/dataset.py", "np.floor(ends + uniform[:, None])", "np.floor(ends)", "paradigm/test_dataset", "mixture"),
    # t5like
    ("t5like/corrupt.py", "first[1:] &= ~mask[:-1]", "first[1:] &= mask[:-1]", "t5like/test_corrupt", "slow_definition"),
    ("t5like/corrupt.py", "np.arange(2 * plan.spans) % 2 == 1", "np.arange(2 * plan.spans) % 2 == 0", "t5like/test_corrupt", "masks or slow"),
    ("t5like/corrupt.py", "if text < plan.raw:", "if False:", "t5like/test_corrupt", "padding_is_not_masked"),
    ("t5like/corrupt.py", "if train and have > length else 0", "if have > length else 0", "t5like/test_corrupt", "longer_window"),
    ("t5like/corrupt.py", "rng.integers(have - length + 1)", "rng.integers(have - length)", "t5like/test_corrupt", "longer_window"),
    ("t5like/corrupt.py", '["byte_lengths"][tokens[predicted]]', '["byte_lengths"][tokens]', "t5like/test_corrupt", "prefix or next_token"),
    ("t5like/corrupt.py", "(np.arange(self.length) >= prefix)", "(np.arange(self.length) > prefix)", "t5like/test_corrupt", "prefix or next_token"),
    ("t5like/objectives/base.py", 'batch["prefix"] + 1 if self.prefix', 'batch["prefix"] if self.prefix', "t5like/test_next_token", "prefix_is_seen_whole or value_and_gradient or depends"),
    ("t5like/corrupt.py", "places - np.maximum.accumulate(np.where(begins, places, 0))", "places - 0 * np.maximum.accumulate(np.where(begins, places, 0))", "t5like/test_corrupt or t5like/test_next_token", "shift or next_token or documents"),
    ("t5like/objectives/base.py", 'batch["weights"] * batch["mask"][:, None]', 'batch["weights"]', "t5like/test_span_corruption", "value_and_gradient"),
    ("t5like/decode/beam.py", "jnp.arange(2 * beams) < beams", "jnp.arange(2 * beams) >= 0", "t5like/test_parity", "beam_search"),
    ("t5like/decode/beam.py", "reader(tokens, _of_cache(cache, parents))", "reader(tokens, cache)", "t5like/test_beam", "ragged_prompts"),
    ("t5like/decode/likelihood.py", "whole.places[skip:]", "whole.places[: len(text)]", "t5like/test_beam", "whole_sequences"),
    ("t5like/denoise.py", "lengths[last] -= total[last] - count", "pass", "t5like/test_bart", "infilling_hides"),
    ("t5like/denoise.py", "hidden[len(front) : len(front) + text] = ~given", "hidden[len(front) : len(front) + text] = given", "t5like/test_bart", "each_noise"),
    ("t5like/denoisers.py", "np.arange(text) >= text - plan.noise", "np.arange(text) < plan.noise", "t5like/test_ul2", "undone"),
    ("t5like/objectives/ul2.py", '(batch["denoiser"] == i)', '(batch["denoiser"] >= i)', "t5like/test_ul2", "value_and_gradient"),
    ("t5like/gap_sentences.py", "np.argsort(-rouge_1", "np.argsort(rouge_1", "t5like/test_pegasus", "move_to_the_targets"),
    ("t5like/corrupt.py", "tokens[i : i - context]", "tokens[i + 1 : len(tokens) + i + 1 - context]", "t5like/test_corrupt", "goldfish"),
    ("t5like/objectives/multi_token.py", 'seen["layers"][-2]', 'seen["layers"][-1]', "t5like/test_multi_token", "value_and_gradient"),
    ("t5like/decode/blanks.py", "dataclasses.replace(v, bos=v.end) if front else v", "v", "t5like/test_decode", "its_own_way"),
    ("t5like/decode/blanks.py", "(n == 0 and place)", "False", "t5like/test_decode", "its_own_way"),
    ("t5like/decode/steps.py", "ended.argmax(-1) + 1", "ended.argmax(-1)", "t5like/test_decode", "by_the_clock"),
    ("t5like/decode/sampled.py", "before < self.top_p", "p < self.top_p", "t5like/test_decode", "probability or draws"),
    ("t5like/decode/sampled.py", "jnp.where(done, filler, choose(hidden, step))", "choose(hidden, step)", "t5like/test_decode", "after_eos"),
    ("t5like/decode/sampled.py", "lengths if prefix else None", "None", "t5like/test_decode", "cached_is_uncached"),
    ("t5like/objectives/electra.py", "fakes != targets", "fakes == fakes", "t5like/test_electra", "value_and_gradient"),
    ("t5like/objectives/electra.py", 'jnp.where(batch["weights"] > 0, places, self.length)', "places", "t5like/test_electra", "value_and_gradient"),
    ("t5like/scoring.py", "jax.random.fold_in(key, n)", "jax.random.fold_in(key, 0)", "t5like/test_electra", "samples_follow"),
    ("t5like/masking.py", "first[1:] |= segments[1:] != segments[:-1]", "pass", "t5like/test_masked_lm", "hidden_whole"),
    ("t5like/masking.py", "free[i : i + n].all()", "True", "t5like/test_masked_lm", "hidden_whole"),
    ("t5like/objectives/masked_next_token.py", '"prefix": np.int32(length),', '"prefix": np.int32(0),', "t5like/test_masked_next_token", "one_before or value"),
    ("t5like/objectives/masked_next_token.py", "targets[places], weights[places] = row", "targets[places - 1], weights[places - 1] = row", "t5like/test_masked_next_token", "one_before"),
    ("t5like/objectives/replaced_tokens.py", "bool), hidden_places, fakes != targets", "bool), hidden_places, fakes == targets", "t5like/test_masked_next_token", "replaced_tokens_by"),
    ("t5like/objectives/position_prediction.py", "moved[stands] = read", "moved = read[stands]", "t5like/test_position_prediction", "can_be_found"),
    ("t5like/objectives/position_prediction.py", "jnp.where(same, logits", "jnp.where(segments[:, None] > 0, logits", "t5like/test_position_prediction", "value_and_gradient"),
    ("t5like/objectives/position_prediction.py", "moving[segments[moving] == document]", "moving", "t5like/test_position_prediction", "can_be_found"),
    ("t5like/objectives/spactor.py", "put(batch[\"encoder_inputs\"], places, fakes)", "batch[\"encoder_inputs\"]", "t5like/test_spactor", "value_and_gradient"),
    ("t5like/objectives/spactor.py", "term.replace(coefficient=self.spans)", "term", "t5like/test_spactor", "value_and_gradient"),
    ("t5like/objectives/spactor.py", "{**row, \"encoder_inputs\": hidden[\"encoder_inputs\"], **own}", "{**row, **own}", "t5like/test_spactor", "hidden_of_what_the_spans_leave"),
    ("t5like/objectives/mutor.py", 'jnp.where(within, later("positions"), batch["positions"])', 'batch["positions"]', "t5like/test_mutor", "value_and_gradient"),
    ("t5like/objectives/mutor.py", "alone=alone, ", "", "t5like/test_mutor", "value_and_gradient"),
    ("t5like/objectives/mutor.py", "term.replace(coefficient=1 - self.weight)", "term", "t5like/test_mutor", "value_and_gradient"),
    ("paradigm/attention.py", "own if seen is None else seen & own", "own", "paradigm/test_transformer", "one_query_sees"),
    ("t5like/clusters.py", "beta * (counts - low)", "beta * (high - counts)", "t5like/test_clusters", "missed_most"),
    ("t5like/clusters.py", "self._sizes == 0", "self._sizes < 0", "t5like/test_clusters", "bad_clusters"),
    ("t5like/objectives/replaced_tokens.py", "jnp.where(found, -1, 1)", "jnp.where(found, 1, -1)", "t5like/test_clusters", "follow_what_was_missed"),
    ("t5like/objectives/simcse.py", 'f"reading{n}/dropout"', '"reading/dropout"', "t5like/test_sentences", "simcse_by"),
    ("t5like/objectives/simcse.py", "1.0 / self.temperature, mask", "1.0 / self.temperature", "t5like/test_sentences", "simcse_by"),
    ("t5like/decode/likelihood.py", "[*ids[:t], hider,", "[*ids[:t], ids[t],", "t5like/test_sentences", "log_probs or asked"),
    ("t5like/objectives/ul2.py", "row.targets, visible=1 + len(given))", "row.targets)", "t5like/test_sentences", "asked"),
    ("t5like/objectives/bart.py", "[len(before) + t - 1]", "[len(before) + t - 2]", "t5like/test_sentences", "asked"),
    ("paradigm/transformer.py", 'own["global"] = jnp.arange(self.layers) % self.global_every == 0', 'own["global"] = jnp.arange(self.layers) % self.global_every == 1', "paradigm/test_stack_settings", "alternate"),
    ("paradigm/attention.py", "distance = jnp.abs(jnp.arange(source) - positions[..., None])", "distance = jnp.abs(jnp.arange(source) - jnp.arange(positions.shape[1])[None, :, None])", "paradigm/test_stack_settings", "alibi_by"),
    ("t5like/sentence_pairs.py", "a, b = b, a", "pass", "t5like/test_sentence_pairs", "swapped"),
    ("t5like/sentence_pairs.py", "[len(a) + 2, len(b) + 1]", "[len(a) + 1, len(b) + 2]", "t5like/test_sentence_pairs", "swapped"),
    ("t5like/tasks/classification.py", 'batch["mask"] * (label >= 0)', 'batch["mask"]', "t5like/test_tasks", "losses_of_classification"),
    ("t5like/tasks/classification.py", "real.sum(1)[:, None, None] - 1", "real.sum(1)[:, None, None] - 2", "t5like/test_tasks", "last_token_says"),
    ("t5like/tasks/tagging.py", "places = ends if self.last else starts", "places = starts", "t5like/test_tasks", "tags_stand"),
    ("t5like/tasks/span_qa.py", "(far >= 0) & (far < self.most)", "(far >= 0) & (far <= self.most)", "t5like/test_tasks", "best_span"),
    ("t5like/tasks/text_to_text.py", "np.arange(len(targets)) >= len(before)", "np.arange(len(targets)) > len(before)", "t5like/test_tasks", "read_input_and_target"),
    ("t5like/tasks/counts.py", 'place_in in "IE" and previous in "BI" and kind == this', 'place_in in "IE" and previous in "BI"', "t5like/test_counts", "entit"),
    ("paradigm/records.py", "mix64(seed, np.arange(size)), classes", "mix64(0, np.arange(size)), classes", "t5like/test_tasks", "fractions"),
    # vision
    ("vision/objectives/moco.py", 'self.embed(extra["teacher"], key, batch', 'self.embed(self.variables(params, extra), key, batch', "vision/test_moco", "official"),
    ("vision/objectives/two_views.py", 'self.encode_views(extra["teacher"], views', 'self.encode_views(self.variables(params, extra), views', "vision/test_moco_v3", "official or asked_for_the_other"),
    ("vision/objectives/moco_v3.py", "info_nce(q[0], k[1], scale, mask), info_nce(q[1], k[0], scale, mask)", "info_nce(q[0], k[0], scale, mask), info_nce(q[1], k[1], scale, mask)", "vision/test_moco_v3", "asked_for_the_other or official"),
    ("vision/masking.py", "(new > 0) & (new <= left)", "(new > 0)", "vision/test_masked_images", "blocks_are_beits"),
    ("vision/masking.py", ".repeat(unit, 0).repeat(unit, 1)", ".repeat(unit, 1).repeat(unit, 0).T", "vision/test_masked_images", "whole_squares"),
    ("vision/hog.py", "jnp.arctan2(across, down)", "jnp.arctan2(down, across)", "vision/test_masked_images", "hog_is"),
    ("vision/patches.py", "looks(2, prefix, prefix), looks(0,", "looks(0, prefix, prefix), looks(2,", "vision/test_vit", "grids_bias_is_beits"),
    ("vision/objectives/masked_images.py", "jnp.take_along_axis(mask, places, 1) * batch", "1.0 * batch", "vision/test_masked_images", "loss_is_the_papers and maskfeat"),
    ("vision/tokenizer.py", "0.5 * jnp.square(table)", "jnp.square(table)", "vision/test_tokenizer", "loss_is_the_papers"),
    ("vision/tokenizer.py", "return z + jax.lax.stop_gradient(nearest - z)", "return nearest + 0 * z", "vision/test_tokenizer", "straight_through"),
    ("vision/objectives/vq.py", "jnp.where(dead, even, book", "jnp.where(dead, 1.0, book", "vision/test_tokenizer", "dead_ones"),
    ("vision/objectives/dvae.py", "math.log(2.0) + log_b", "log_b", "vision/test_tokenizer", "dalle_loss"),
    ("vision/objectives/beit.py", 'seen["layers"][self.aggregate_from - 1]', 'seen["layers"][self.aggregate_from]', "vision/test_beit", "beits_loss"),
    ("vision/objectives/data2vec.py", "standardized(standardized(layers).mean(0))", "standardized(layers.mean(0))", "vision/test_beit", "data2vecs_loss"),
    ("vision/objectives/i_jepa.py", "seen = AttentionMask(keys=real.astype(jnp.int32))", "seen = AttentionMask()", "vision/test_beit", "i_jepas_loss"),
    ("vision/objectives/i_jepa.py", "(1.0, 1.0)) & ~targets.any(0)", "(1.0, 1.0))", "vision/test_beit", "blocks_are_the_official"),
    ("vision/objectives/aim.py", "jnp.arange(1, self.patches) >= prefix", "jnp.arange(1, self.patches) > prefix", "vision/test_beit", "aims_loss"),
    ("vision/objectives/igpt.py", "table(ids[:, :-1])", "table(ids[:, 1:])", "vision/test_igpt", "loss_is_the_papers"),
    ("vision/objectives/igpt.py", "jnp.where(t < known, ids", "jnp.where(t <= known, ids", "vision/test_igpt", "sampling_with_a_cache"),
    ("vision/objectives/mae.py", "ddof=1", "ddof=0", "vision/test_mae", "loss_is_the_papers"),
    ("vision/objectives/mae.py", "pixels = jnp.take_along_axis(pixels, ids_shuffle[:, self.kept :, None], 1)", "pixels = jnp.take_along_axis(pixels, ids_shuffle[:, : -self.kept, None], 1)", "vision/test_mae", "loss_is_the_papers"),
    ("vision/objectives/classify.py", 'weights = batch["mask"] * (batch["label"] >= 0)', 'weights = batch["mask"]', "vision/test_classify", "loss_by_loops"),
    ("vision/objectives/simclr.py", "1.0 / self.temperature, mask)", "self.temperature, mask)", "vision/test_simclr", "official"),
    ("vision/augment.py", "scale[0] + (scale[1] - scale[0]) * sizes[0]", "scale[0] + scale[1] * sizes[0]", "vision/test_augment", "distributed"),
    ("vision/augment.py", "across[:, ::-1]", "across[:, :, ::-1]", "vision/test_augment", "pil"),
    ("vision/augment.py", "jnp.where(x < 128 / 255, x, 1.0 - x)", "jnp.where(x <= 128 / 255, x, 1.0 - x)", "vision/test_augment", "solarise"),
    ("paradigm/teacher.py", "-jax.nn.logsumexp(scores + of_row + outside, axis=rows)", "-jax.nn.logsumexp(scores + of_row, axis=rows)", "paradigm/test_nearest", "sinkhorn_is_the_official"),
    ("paradigm/contrastive.py", "better = high > top", "better = high < top", "paradigm/test_nearest", "nearest_of_a_queue"),
    ("vision/objectives/dino.py", "(scores - centre) / temperature", "(scores + centre) / temperature", "vision/test_multi_crop", "loss_of_dino"),
    ("vision/objectives/swav.py", "max(self.queue_from, self.queue // len(scores))", "0", "vision/test_multi_crop", "loss_of_swav"),
    ("vision/objectives/barlow_twins.py", "jnp.square(off_diagonal(c))", "jnp.square(c)", "vision/test_joint", "official_ones"),
    ("vision/objectives/simsiam.py", "[jax.lax.stop_gradient(l2_normalize(x)) for x in z]", "[l2_normalize(x) for x in z]", "vision/test_joint", "official_ones"),
    ("vision/patches.py", "np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1)", "np.concatenate([np.sin(y), np.cos(y), np.sin(x), np.cos(x)], 1)", "vision/test_patches", "formula"),
    ("vision/objectives/segmentation.py", "how(planes, batch[\"aspect\"], keys)", "how.plain(planes, batch[\"aspect\"])", "vision/test_segmentation", "follow"),
    ("vision/objectives/segmentation.py", "batch[\"mask\"][:, None, None] * (regions >= 0)", "batch[\"mask\"][:, None, None] * (regions >= -1)", "vision/test_segmentation", "loss_by_loops"),
    ("vision/segments.py", "table.sum(0) + table.sum(1) - np.diag(table)", "table.sum(0) + table.sum(1)", "vision/test_segmentation", "intersection"),
    ("vision/hf/beit.py", '("lambda_1", "attention_layer_scale"', '("lambda_2", "attention_layer_scale"', "vision/test_parity", "beit"),
    ("vision/hf/beit.py", '"shared" if shared else "layers"', '"layers" if shared else "shared"', "vision/test_parity", "beit"),
    ("vision/vit.py", '("layers", "scaled_init",', '("layers",', "vision/test_vit", "smaller_on_residual"),
    ("vision/heads.py", "normal(self.std)", "normal(1.0)", "vision/test_heads", "shorter_prototypes"),
    ("vision/objectives/base.py", "        self.check_crops()\n", "", "vision/test_mae", "impossible"),
    ("vision/vit.py", 'self.make_norm("norm")(mean) if', "mean if", "vision/test_parity", "data2vec"),
    ("vision/hf/data2vec.py", '"pooler.layernorm", "encoder/norm"', '"layernorm", "encoder/norm"', "vision/test_parity", "data2vec"),
    ("vision/objectives/patch_positions.py", "AttentionMask(keys=context)", "AttentionMask()", "vision/test_patch_positions", "papers"),
    ("vision/rand_augment.py", "1 + 0.9 * m", "1 - 0.9 * m", "vision/test_rand_augment", "operations and color"),
    ("paradigm/dataset.py", "index // self.times", "index", "paradigm/test_dataset", "repeated_records"),
    ("vision/data.py", "self.fraction_seed, _labels(train)", "self.fraction_seed, None", "vision/test_sources", "fraction"),
    ("vision/data.py", "labels[source.positions]", "labels[: len(source)]", "vision/test_sources", "fraction"),
    # multimodal
    ("multimodal/data.py", "self.fraction_seed, train.read_labels()", "self.fraction_seed, None", "multimodal/test_data", "fraction"),
    ("multimodal/sources.py", "source.captions(int(self.positions[position]))", "source.captions(int(position))", "multimodal/test_data", "fraction"),
    ("multimodal/objectives/clip.py", "outwards = ((x >= high) & (g < 0))", "outwards = ((x >= high) & (g > 0))", "multimodal/test_objectives", "clamped_and_can_come_back"),
    ("multimodal/objectives/clip.py", "(to_text + to_image) / 2 * mask", "(to_text + to_text) / 2 * mask", "multimodal/test_objectives", "clip_is_the_papers"),
    ("multimodal/objectives/siglip.py", "jnp.sum(total * mask), rows)", "jnp.sum(total), rows)", "multimodal/test_objectives", "siglip_is_the_papers"),
    ("multimodal/zero_shot.py", "best[top : top + chunk, None] - TIE", "best[top : top + chunk, None] + TIE", "multimodal/test_zero_shot", "ties"),
    ("multimodal/zero_shot.py", "answers[:, None] - drawn, 0)", "answers[:, None], 0)", "multimodal/test_zero_shot", "chance"),
    ("multimodal/zero_shot.py", "np.searchsorted(chosen, y)", "y", "multimodal/test_zero_shot", "named_in_words or label"),
    ("multimodal/objectives/coca.py", "self.caption_loss(params, seen[\"hidden\"], targets, weights, self.captioning)", "self.caption_loss(params, seen[\"hidden\"], targets, weights)", "multimodal/test_captioners", "papers and coca"),
    ("multimodal/objectives/captioner.py", "(before == 0) * batch", "(before >= 0) * batch", "multimodal/test_captioners", "papers"),
    ("multimodal/objectives/cappa.py", "jax.random.uniform(key) < self.parallel", "jax.random.uniform(key) > self.parallel", "multimodal/test_captioners", "papers and cappa"),
    ("multimodal/objectives/simvlm.py", "(jnp.arange(inputs.shape[1]) >= given[:, None])", "(jnp.arange(inputs.shape[1]) > given[:, None])", "multimodal/test_captioners", "papers and simvlm"),
    ("multimodal/objectives/silc.py", 'encode_views(extra["teacher"], views', "encode_views(variables, views", "multimodal/test_silc", "papers"),
    ("multimodal/objectives/silc.py", "seen[:, GLOBAL:], ctx)", "seen[:, :GLOBAL], ctx)", "multimodal/test_silc", "papers"),
    ("multimodal/objectives/silc.py", '{"image": image[:, v]', '{"image": image[:, 0]', "multimodal/test_silc", "papers"),
    ("multimodal/objectives/vilt.py", "self.hardness * (bags @ bags.T)", "bags @ bags.T", "multimodal/test_vilt", "hard_ones"),
    ("multimodal/objectives/vilt.py", "(mask > 0) & ~equal", "mask > 0", "multimodal/test_vilt", "another_of_the_batch"),
    ("multimodal/objectives/captioner.py", '"prefix": self.lengths(tokens)', '"prefix": None', "multimodal/test_vilt", "papers"),
    ("multimodal/objectives/magma.py", "[encoded.astype(x.dtype), x], 1)", "[x, encoded.astype(x.dtype)], 1)", "multimodal/test_captioners", "papers and magma"),
    ("multimodal/objectives/magma.py", "new_cache(batch, self.before + length)", "new_cache(batch, length)", "multimodal/test_captioners", "cached and magma"),
    ("multimodal/objectives/nlvr.py", "if k else patches", "", "multimodal/test_nlvr", "vilts"),
    ("multimodal/objectives/nlvr.py", 'batch["mask"] * (batch["label"] >= 0)', 'batch["mask"]', "multimodal/test_nlvr", "vilts"),
    ("multimodal/two_scenes.py", "words = pair[side if truth else 1 - side]", "words = pair[side]", "multimodal/test_nlvr", "drawn_sentences"),
    ("multimodal/objectives/silc.py", "embed(teacher, read(teacher))", "embed(variables, read(variables))", "multimodal/test_silc", "hidden_patches"),
    ("multimodal/captioners.py", "real = jnp.concatenate([ones, segments], 1)[:, :-1]", "real = segments", "multimodal/test_open_clip", "outputs"),
    ("multimodal/captioners.py", "jnp.concatenate([ones, real], 1)", "jnp.concatenate([segments, ones], 1)", "multimodal/test_open_clip", "outputs"),
    ("multimodal/captioners.py", "tokens = jnp.where(real > 0, tokens, 0)", "pass", "multimodal/test_open_clip", "pads"),
    ("multimodal/zero_shot.py", "objective.aspect(batch)", 'batch["aspect"]', "multimodal/test_few_shot", "aspect"),
    ("vision/vit.py", "antialias=self.registers > 0", "antialias=False", "vision/test_vit", "antialiased_with_registers"),
    ("paradigm/transformer.py", 'source = self.make_norm("source_norm")(source)', 'self.make_norm("source_norm")(source)', "multimodal/test_open_clip", "outputs"),
    ("t5like/pooled.py", "x[:, 1:] if self.sources else x", "x[:, :-1] if self.sources else x", "multimodal/test_mixture", "vector_of_its_data_set"),
    ("multimodal/mixture.py", "self.n == self.k", "self.n >= self.k", "multimodal/test_mixture", "by_turns"),
    ("multimodal/two_pictures.py", "true > false + TIE", "true > false - TIE", "multimodal/test_two_pictures", "knows_nothing"),
    ("multimodal/two_pictures.py", "(shared < sizes[:, None]) & (shared < sizes)", "shared < sizes", "multimodal/test_two_pictures", "shares_most"),
    ("multimodal/captioners.py", "jnp.maximum(offset - self.count, 0)", "offset", "multimodal/test_captioners", "cached and simvlm"),
    ("multimodal/captioners.py", "mask = AttentionMask(True, queries=segments, keys=segments)", "mask = AttentionMask(True)", "multimodal/test_captioners", "real_tokens"),
    ("multimodal/caption_scores.py", "min(x, other[gram]) * other[gram]", "x * other[gram]", "multimodal/test_caption_scores", "repeated"),
    # probes, evaluation, runs, checkpoints, files
    ("paradigm/probing.py", "(x_test - center) / scale", "(x_test - x_test.mean(0)) / (x_test.std(0) + 1e-6)", "vision/test_probe", "standardised"),
    ("vision/probe.py", "layer_decay=LayerDecay(0.75)", "layer_decay=LayerDecay(1.0)", "vision/test_probe", "deep_layers_less"),
    ("vision/probe.py", "augment=mild(objective.views[0])", "augment=objective.views[0]", "vision/test_probe", "mild_views"),
    ("multimodal/captions.py", 'before = "" if self.split == "valid" else', 'before = "" if self.split else', "multimodal/test_captioners", "scored_and_shown"),
    ("multimodal/fields.py", "len(found := one((IMAGE, *_PLAIN[IMAGE]))) == 1", "len(found := one((IMAGE, *_PLAIN[IMAGE]))) >= 1", "multimodal/test_tables", "cannot_be_read"),
    ("paradigm/names.py", '("train" in known and len(known) > 1 or None not in splits)', "None not in splits", "multimodal/test_tables", "plain_names"),
    ("paradigm/probing.py", "best = int(np.argmax([_accuracy(head, x[apart], y[apart])", "best = int(np.argmax([_accuracy(head, x_test, y_test)", "vision/test_probe", "chosen_without"),
    ("t5like/sources.py", "for file in sorted(files):", "for file in files:", "t5like/test_sources", "file_system"),
    ("t5like/baselines.py", "i * size // wanted", "i", "t5like/test_baselines", "spread"),
    ("launch/run/evaluation.py", '"online" if self._experiment.ema is None else "ema"', '"online"', "launch/test_evaluate", "average_of_weights"),
    ("launch/run/loop.py", "last = stop.asked(step), step >= total", "last = stop.asked(step), step == total + 1", "launch/run/test_resume", "resume or step"),
    ("launch/results/table.py", "if not run.ended:", "if False:", "launch/test_compare", "seeds_are_one_row"),
    ("launch/results/table.py", "statistics.stdev(values)", "statistics.pstdev(values)", "launch/test_compare", "seeds_are_one_row or as_it_is"),
    ("launch/results/table.py", "if other.seed == run.seed)", "if False)", "launch/test_compare", "twice_is_not_two"),
    ("launch/results/runs.py", "math.nan if value is None else", "0.0 if value is None else", "launch/test_compare", "not_finite"),
    ("launch/results/picture.py", ".intersection(*values[1:])", ".union(*values[1:])", "launch/test_compare", "spread_is_over"),
    ("launch/sweep.py", "steps[-1] >= run.total_steps", "steps[0] >= 1", "launch/test_sweep", "goes_on"),
    ("launch/sweep.py", "return range(index, count, of)", "return range(index * count // of, (index + 1) * count // of)", "launch/test_sweep", "machine_has_its_part"),
    ("launch/aot/dry_run.py", "mesh.size * hlo.cost", "hlo.cost", "launch/aot/test_dry_run", "beside"),
    ("launch/storage/checkpoint.py", "*list(whole)[-self._keep :]", "*list(whole)[-self._keep - 1 :]", "launch/storage/test_checkpoint", "keeps_the_newest"),
    ("launch/storage/workdir.py", "(key not in old and key in unset)", "(key in unset)", "launch/run/test_experiment", "came_with_newer_code"),
    ("launch/run/loop.py", "pool.shutdown, wait=False, cancel_futures", "pool.shutdown, cancel_futures", "launch/run/test_loop", "told_before_all_is_compiled"),
    ("launch/aot/terms.py", "jax.config.update(name, True)", "jax.config.update(name, before)", "launch/aot/test_terms", "names_are_of_this_code"),
    ("paradigm/archives.py", "if len(block := stream.read(_BLOCK)) < _BLOCK or", "if (block := stream.read(_BLOCK)) and", "t5like/test_odd_files", "cut_short"),
    ("paradigm/names.py", "return found.pop() if len(found) == 1 else None", "return None", "t5like/test_guess", "lists_of_a_json"),
    ("t5like/guess.py", "if len(text) != 1:", "if not text:", "t5like/test_guess", "two_readings"),
    ("vision/arrange.py", 'if own - classes["train"]:', 'if not own:', "vision/test_sources", "bad_folders"),
    ("paradigm/combine.py", "zip((0,) + tuple(self.boundaries), self.boundaries)", "zip((-1,) + tuple(self.boundaries), self.boundaries)", "paradigm/test_contract", "combinator_errors"),
    # what names say, and which line has which picture
    ("t5like/held_out.py", 'if p.split != "test"]', 'if p.split != "x"]', "t5like/test_named_splits", "what_names_call"),
    ("t5like/held_out.py", 'piece.split == "valid"', 'piece.split == "test"', "t5like/test_named_splits", "what_names_call"),
    ("t5like/labels.py", "if not math.isfinite(number)", "if math.isnan(number)", "t5like/test_named_splits", "no_numbers"),
    ("multimodal/tables.py", "(whole if whole.any() else True)", "True", "multimodal/test_listed", "lines_without_a_picture"),
    ("multimodal/fields.py", 'fits[0] if len(fits) == 1 else ""', 'fits[0] if fits else ""', "multimodal/test_listed", "by_a_form"),
    # files, labels and settings of a first hour
    ("paradigm/archives.py", "if not first and raw[: len(self._mark)]", "if first and raw[: len(self._mark)]", "t5like/test_formats", "packed_ends"),
    ("paradigm/classes.py", "len(words) > 0.9 * records", "len(words) > records", "t5like/test_records", "no_classes"),
    ("vision/embedded.py", "bisect.bisect_right(table.ends, row)", "bisect.bisect_left(table.ends, row)", "vision/test_embedded", "every_picture"),
    ("vision/embedded.py", "kept[file, k] = self.table", "kept[file, 0] = self.table", "vision/test_embedded", "every_picture"),
    ("multimodal/tables.py", "split=recipe.split or _SPLIT", 'split=""', "multimodal/test_listed", "tables_of_splits"),
    ("t5like/likelihood.py", "for k in spread(len(records), count)", "for k in range(count)", "t5like/test_sentences", "fair_part"),
    ("t5like/unknown.py", "ids == vocabulary.unk", "ids == vocabulary.pad", "t5like/test_data", "does_not_know"),
    ("launch/run/data.py", "parquet tsv csv beside wds", "tsv", "launch/run/test_loop", "every_kind_of_source"),
    ("launch/run/initial.py", 'arrays.get("extra", {}).get("ema", {})', 'arrays.get("extra", {}).get("", {})', "launch/run/test_initial", "takes_the_average"),
    # what is read of captions, adaptations and averages; noise of short windows; tables of rules
    ("multimodal/preprocess.py", "vocabulary.bos if vocabulary.bos != vocabulary.end else None", "vocabulary.bos", "multimodal/test_data", "become_rows_that_end"),
    ("multimodal/captions.py", "seed = self.seed + step * len(prompts)", "seed = self.seed", "multimodal/test_captioners", "captions_of_each_batch"),
    ("multimodal/objectives/captioner.py", "self.reader, params, self.adapt)", "self.reader, params, None)", "multimodal/test_magma", "adapted_output"),
    ("vision/probe.py", "copy(plain_encoder(objective, variables))", 'copy(variables["params"]["encoder"])', "vision/test_probe", "adapt"),
    ("launch/run/initial.py", "name if name in found else of_parameters.get(_in_module(name))", "name if name in found else None", "launch/run/test_initial", "running_statistics_find"),
    ("t5like/baselines.py", "np.bincount(tokens[segments > 0],", "np.bincount(tokens,", "t5like/test_baselines", "unigram"),
    ("t5like/corrupt.py", "plan.noise / plan.spans).fitted", "plan.noise / plan.spans)", "t5like/test_corrupt", "short or little"),
    ("paradigm/optim.py", "(class_token|mask_token|registers|probe|query|queries)$", "(registers)$", "paradigm/test_optim", "muon_takes_tokens"),
    ("paradigm/trees.py", " or isinstance(rule[1], bool) != (kind is bool)", "", "paradigm/test_optim", "bad_tables"),
    ("t5like/hf/modernbert.py", 'config.choose("classifier_activation", "gelu", OF_HEAD)', '"gelu_exact"', "t5like/test_weights", "activation_of_its_own"),
    # models asked in a notebook
    ("t5like/features.py", "return [v.start], []", "return [], []", "launch/test_load", "embed_texts"),
    ("t5like/features.py", "1 << (max(lengths) - 1).bit_length()", "1 << (min(lengths) - 1).bit_length()", "launch/test_load", "embed_texts"),
    ("multimodal/ask.py", "np.float64(objective.scale(variables[\"params\"])) *", "1.0 *", "multimodal/test_zero_shot", "asked_in_a_notebook"),
    ("vision/ask.py", "np.argsort(-chances, kind", "np.argsort(chances, kind", "launch/test_load", "pictures_are_classified"),
    # a pre-trained model as it is there
    ("launch/run/base.py", "if f not in FREE}", "if f not in FREE and getattr(module, f)}", "launch/test_base", "has_the_model"),
    ("launch/run/base.py", '[f"{name}.specials = ()"] if', "[] if", "launch/test_base", "has_the_model"),
    ("launch/run/initial.py", "bodies and module not in BODIES", "False", "launch/test_base", "comes_without_its_decoder"),
    ("t5like/hf/bert.py", "if bias in tensors else {}", "if True else {}", "t5like/test_weights", "with_its_head"),
    ("t5like/hf/bert.py", r"bert\.pooler\..*", r"bert\.pooler\.", "t5like/test_weights", "with_its_head"),
    ("t5like/tokenizers/subwords.py", 'return 2 if sep == "</s>" else 1', "return 1", "t5like/test_subwords", "stands_around"),
    ("launch/run/initial.py", "x.astype(first[name].dtype)", "x", "launch/run/test_initial", "narrowed"),
    ("t5like/labels.py", "isinstance(value := _listed(value, template.strip()[1:-1]), list)", "isinstance(value, list)", "t5like/test_labels", "tags_and_words"),
    ("vision/data.py", "if only_test and not secret:", "if only_test:", "vision/test_folders", "without_labels"),
    ("vision/arrange.py", "inner, rows = _one_inside(rows)", "inner = ()", "vision/test_folders", "one_folder_inside"),
    ("paradigm/records.py", "None if label == -1 else label", "label", "t5like/test_labels", "parquet_file_names"),
    ("t5like/features.py", "type(layer) is int and ", "", "launch/test_load", "embed"),
)  # fmt: skip


def mistaken(row, folder):
    """Writes a copy of the project with this row's mistake into `folder`."""
    file, old, new, *_ = row
    skip = shutil.ignore_patterns(".git", ".venv*", ".cache", "*.egg-info", "__pycache__", "workdirs")
    shutil.copytree(REPO, folder, ignore=skip, dirs_exist_ok=True)
    path = pathlib.Path(folder, file)
    text = path.read_text()
    assert text.count(old) == 1, f"{file} has changed meanwhile: {old}"
    path.write_text(text.replace(old, new))


def caught(row, package=False):
    """Whether the row's test, or with `package` any of its package's, fails on the mistake. None: the test is gone."""
    file, _, _, test, name = row
    where = [f"tests/{file.split('/')[0]}"] if package else [f"tests/{part.strip()}.py" for part in test.split(" or ")]
    with tempfile.TemporaryDirectory() as folder:
        mistaken(row, folder)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-m", "not slow", "--durations=0", *where]
        command += [] if package else ["-k", name]
        environment = os.environ | {"PYTHONPATH": folder}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return {0: False, 1: True}.get(done.returncode)


def unguarded(rows):
    """Those of the rows whose test is not there in `make test` or `make test-long`, by what pytest collects."""
    files = sorted({f"tests/{part.strip()}.py" for row in rows for part in row[3].split(" or ")})
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "not slow", "--collect-only", "-o", "addopts="]
    listed = subprocess.run([*command, *files], cwd=REPO, capture_output=True, text=True).stdout.splitlines()

    def selects(row, line):
        file, line = line.partition("::")[0], line.lower()
        word = lambda match: str(match[0].lower() in line) if match[0] not in ("and", "or", "not") else match[0]
        here = any(file == f"tests/{part.strip()}.py" for part in row[3].split(" or "))
        return here and eval(re.sub(r"[\w.-]+", word, row[4]))

    return [row for row in rows if not any(selects(row, line) for line in listed)]


def main(words):
    flags = {word for word in words if word.startswith("--")}
    words = [word for word in words if word not in flags]
    rows = [row for row in ROWS if not words or any(word in f"{row[0]} {row[3]} {row[4]}" for word in words)]
    stale = [row for row in rows if (REPO / row[0]).read_text().count(row[1]) != 1]
    for file, old, *_ in stale:
        print(f"stale   {file}: not there once: {old}")
    if "--check" in flags:
        lost = unguarded(rows)
        for file, old, _, test, name in lost:
            print(f"no test {file}: {old}: none that is not slow in {test} -k '{name}'")
        stale += lost
    found = []
    for row in [] if "--check" in flags else [row for row in rows if row not in stale]:
        found.append(caught(row, "--package" in flags))
        word = {True: "caught ", False: "MISSED ", None: "no test"}[found[-1]]
        print(f"{word} {row[0]}: {row[1]} -> {row[2]} by {row[3]} -k '{row[4]}'", flush=True)
    print(f"{sum(map(bool, found))} of {len(found)} caught, {len(rows)} rows, {len(stale)} stale")
    return bool(stale) or not all(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
