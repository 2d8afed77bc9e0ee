// Trains by Caffe itself, in single precision as it does, under any LRs: a curve for
// results/caffe/<experiment>-<random_seed>.csv.
//
//     train SOLVER.prototxt LRS CURVE.csv
//
// LRS: a line per iteration, `records.learning_rates(config)[:-1]` of a run's config. SOLVER, for the one that is there:
//
//     net: "examples/cifar10/cifar10_full_train_test.prototxt" momentum: 0.9 weight_decay: 0.004 lr_policy: "fixed"
//     base_lr: 0.001 test_iter: 100 test_interval: 1000 random_seed: 1 solver_mode: CPU
//
// Built as record.cpp is, and run in Caffe's folder.

#include <cstdio>
#include <fstream>
#include <vector>

#include "caffe/caffe.hpp"

int main(int, char** given) {
    FLAGS_minloglevel = 1;
    google::InitGoogleLogging(given[0]);
    caffe::Caffe::set_mode(caffe::Caffe::CPU);
    caffe::SolverParameter settings;
    caffe::ReadSolverParamsFromTextFileOrDie(given[1], &settings);
    const int batches = settings.test_iter(0), every = settings.test_interval();
    settings.set_test_interval(1 << 30);  // evaluated here
    settings.set_test_initialization(false);
    caffe::Caffe::set_random_seed(settings.random_seed());
    const boost::shared_ptr<caffe::Solver<float>> solver(caffe::SolverRegistry<float>::CreateSolver(settings));
    auto& test = *solver->test_nets()[0];

    std::ifstream file(given[2]);
    std::vector<double> lrs;
    for (double lr; file >> lr;) lrs.push_back(lr);
    CHECK(!lrs.empty()) << given[2] << ": expected a line per iteration";
    std::ofstream curve(given[3]);
    CHECK(curve) << given[3] << ": cannot be written";
    curve << "iteration,lr,train_loss,test_loss,test_accuracy,train_seconds\n";
    for (size_t t = 0; t <= lrs.size(); ++t) {
        const double lr = lrs[t < lrs.size() ? t : t - 1];
        if (t % every == 0 || t == lrs.size()) {
            test.ShareTrainedLayersWith(solver->net().get());
            double accuracy = 0, loss = 0;
            for (int batch = 0; batch < batches; ++batch) {
                test.Forward();
                accuracy += test.blob_by_name("accuracy")->cpu_data()[0] * 100 / batches;
                loss += test.blob_by_name("loss")->cpu_data()[0] / batches;
            }
            curve << t << "," << lr << ",," << loss << "," << accuracy << "," << std::endl;
            std::printf("%zu  lr %g, test %.2f %%\n", t, lr, accuracy);
            std::fflush(stdout);
        }
        const_cast<caffe::SolverParameter&>(solver->param()).set_base_lr(lr);
        if (t < lrs.size()) solver->Step(1);
    }
    return 0;
}
