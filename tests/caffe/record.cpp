// Trains a few iterations by Caffe itself, in double precision, and writes what comes out; called by record.py.
//
//     record SOLVER.prototxt STEPS OUT
//
// Weights, biases and the net's inputs, where it has any, start at the numbers of record.py's `start`. OUT: the net's
// blobs after STEPS iterations (of batch normalisation the statistics), then the outputs of the test net, as doubles. On
// stdout a line for each of these: its name and how many numbers.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>

#include "caffe/caffe.hpp"

using caffe::Blob;
using caffe::Net;

static void fill(Blob<double>& blob, double amplitude) {
    std::mt19937 random(blob.count());
    for (int i = 0; i < blob.count(); ++i)
        blob.mutable_cpu_data()[i] = (random() / 2147483648.0 - 1) * amplitude;
}

static void start(const Net<double>& net) {
    for (const auto& layer : net.layers())
        for (const auto& blob : layer->blobs()) {
            const double inputs = blob->count() / blob->shape(0);
            if (layer->type() == std::string("BatchNorm")) continue;
            if (blob->num_axes() == 1) fill(*blob, 0.1);
            else fill(*blob, std::sqrt(3 / inputs) / (blob->num_axes() == 4 && blob->shape(1) == 3 ? 8 : 1));
        }
    if (net.num_inputs() == 0) return;
    fill(*net.input_blobs()[0], 128);
    for (int i = 0; i < net.input_blobs()[1]->count(); ++i) net.input_blobs()[1]->mutable_cpu_data()[i] = i;
}

static void write(const std::string& name, const Blob<double>& blob, std::ofstream& out) {
    std::printf("%s %d\n", name.c_str(), blob.count());
    out.write(reinterpret_cast<const char*>(blob.cpu_data()), sizeof(double) * blob.count());
}

int main(int, char** given) {
    FLAGS_minloglevel = 1;
    google::InitGoogleLogging(given[0]);
    caffe::Caffe::set_mode(caffe::Caffe::CPU);
    caffe::SolverParameter settings;
    caffe::ReadSolverParamsFromTextFileOrDie(given[1], &settings);
    const boost::shared_ptr<caffe::Solver<double>> solver(caffe::SolverRegistry<double>::CreateSolver(settings));
    const Net<double>& net = *solver->net();
    Net<double>& test = *solver->test_nets()[0];
    start(test);  // for its inputs
    start(net);
    solver->Step(std::atoi(given[2]));

    std::ofstream out(given[3], std::ios::binary);
    for (size_t layer = 0; layer < net.layers().size(); ++layer)
        for (size_t i = 0; i < net.layers()[layer]->blobs().size(); ++i)
            write(net.layer_names()[layer] + "." + std::to_string(i), *net.layers()[layer]->blobs()[i], out);
    test.ShareTrainedLayersWith(&net);
    test.Forward();
    for (size_t i = 0; i < test.output_blobs().size(); ++i)
        write("test." + test.blob_names()[test.output_blob_indices()[i]], *test.output_blobs()[i], out);
    return out.flush() ? 0 : 1;
}
